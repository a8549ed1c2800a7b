"""Exact MaxSim against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from colbert_fast.kernels import ops, reference
from support import DIMS, DOCLENS, PAIRS, any_threads, every_isa, same_bits, unit_vectors
from tolerances import PUBLISHED, assert_best, assert_close


def plain(query: np.ndarray, documents: np.ndarray, doclens: np.ndarray) -> np.ndarray:
    """MaxSim in float32 numpy: one matmul, then max and sum per document."""
    similarities = query @ documents.T
    ends = np.cumsum(doclens)
    return np.array(
        [
            similarities[:, end - length : end].max(axis=1).sum() if length else -np.inf
            for length, end in zip(doclens, ends, strict=True)
        ],
        np.float32,
    )


def assert_argmax(argmax: np.ndarray, query: np.ndarray, documents: np.ndarray) -> None:
    """Each token chosen is the best of its document in float64, up to the error of the scores."""
    similarities = documents.astype(np.float64) @ query.astype(np.float64).T
    start = 0
    for length, chosen in zip(DOCLENS, argmax, strict=True):
        if length == 0:
            assert (chosen == -1).all()
        else:
            assert_best(chosen, similarities[start : start + length].T)
        start += length


@every_isa
@pytest.mark.parametrize(("nq", "dim"), PAIRS)
def test_matches_reference(nq: int, dim: int, rng: np.random.Generator) -> None:
    query, documents = unit_vectors(rng, nq, dim), unit_vectors(rng, DOCLENS.sum(), dim)
    scores, argmax = ops.maxsim(query, documents, DOCLENS, return_argmax=True)
    truth = reference.maxsim(query, documents, DOCLENS)
    assert_close(scores, truth, plain(query, documents, DOCLENS), "maxsim", terms=nq)
    assert (argmax.dtype, argmax.shape) == (np.int32, (len(DOCLENS), nq))
    assert_argmax(argmax, query, documents)
    assert same_bits(ops.maxsim(query, documents, DOCLENS), scores)


@every_isa
@pytest.mark.parametrize("dim", DIMS)
def test_keeps_the_published_tolerance(dim: int, rng: np.random.Generator) -> None:
    query, documents = unit_vectors(rng, 32, dim), unit_vectors(rng, DOCLENS.sum(), dim)
    truth = reference.maxsim(query, documents, DOCLENS)
    np.testing.assert_allclose(ops.maxsim(query, documents, DOCLENS), truth, rtol=0, atol=PUBLISHED)


@every_isa
@pytest.mark.parametrize("dim", [8, 48, 136])
def test_float16_documents(dim: int, rng: np.random.Generator) -> None:
    query = unit_vectors(rng, 17, dim)
    documents = unit_vectors(rng, DOCLENS.sum(), dim).astype(np.float16)
    documents[0, 0] = np.float16(6e-8)  # a subnormal
    wide = documents.astype(np.float32)
    assert same_bits(ops.maxsim(query, documents, DOCLENS), ops.maxsim(query, wide, DOCLENS))


@every_isa
@pytest.mark.parametrize("dim", [8, 48, 136])
def test_bfloat16_documents(dim: int, rng: np.random.Generator) -> None:
    torch: Any = pytest.importorskip("torch", reason="bfloat16 arrays come from torch")
    query, doclens = torch.from_numpy(unit_vectors(rng, 17, dim)), torch.from_numpy(DOCLENS)
    documents = torch.from_numpy(unit_vectors(rng, DOCLENS.sum(), dim)).bfloat16()
    scores = ops.maxsim(query, documents, doclens)
    assert same_bits(scores, ops.maxsim(query, documents.float(), doclens))


@any_threads
@every_isa
def test_a_batch_is_its_queries(rng: np.random.Generator) -> None:
    queries, documents = unit_vectors(rng, 3, 7, 24), unit_vectors(rng, DOCLENS.sum(), 24)
    scores, argmax = ops.maxsim(queries, documents, DOCLENS, return_argmax=True)
    assert (scores.shape, argmax.shape) == ((3, len(DOCLENS)), (3, len(DOCLENS), 7))
    for query, *results in zip(queries, scores, argmax, strict=True):
        alone = ops.maxsim(query, documents, DOCLENS, return_argmax=True)
        assert same_bits(tuple(results), alone)


@every_isa
def test_equal_tokens_meet_the_lowest() -> None:
    documents = np.ones((40, 8), np.float32)
    _, argmax = ops.maxsim(
        documents[:3], documents, np.array([33, 7], np.int32), return_argmax=True
    )
    assert (argmax == 0).all()


@every_isa
def test_negative_scores_are_not_clipped() -> None:
    query, documents = np.ones((1, 8), np.float32), np.full((17, 8), -1, np.float32)
    scores = ops.maxsim(query, documents, np.array([17], np.int32))
    assert scores.tolist() == [-8]


@every_isa
def test_nothing_to_score() -> None:
    query, none = np.ones((2, 8), np.float32), np.zeros((0, 8), np.float32)
    assert ops.maxsim(query, none, np.zeros(0, np.int32)).shape == (0,)
    assert ops.maxsim(query, none, np.zeros(3, np.int32)).tolist() == [-np.inf] * 3


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"query": np.ones((2, 16), np.float32)}, ["query|documents", "16"]),
        ({"query": np.ones(8, np.float32)}, ["query"]),
        ({"doclens": np.array([2, 2], np.int32)}, ["doclens", "4", "5"]),
        ({"doclens": np.array([6, -1], np.int32)}, ["doclens", "-1"]),
        ({"documents": np.ones((5, 7), np.float32)}, ["query|documents", "7"]),
    ],
)
def test_wrong_shapes_are_named(change: dict[str, np.ndarray], names: list[str]) -> None:
    arguments = {
        "query": np.ones((2, 8), np.float32),
        "documents": np.ones((5, 8), np.float32),
        "doclens": np.array([2, 3], np.int32),
    }
    ops.maxsim(**arguments)
    for name in names:
        with pytest.raises(ValueError, match=name):
            ops.maxsim(**{**arguments, **change})
