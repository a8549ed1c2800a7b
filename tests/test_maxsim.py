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
@pytest.mark.parametrize("nq", [1, 17, 32])
def test_an_infinite_value_of_a_document_is_no_padding(nq: int) -> None:
    documents = np.ones((3, 8), np.float32)
    documents[1, 0], doclens = np.inf, np.array([1, 2], np.int32)
    assert ops.maxsim(np.ones((nq, 8), np.float32), documents, doclens).tolist() == [8 * nq, np.inf]


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


OWN = len(DOCLENS) // 2
"""Documents of each of two queries."""


@any_threads
@every_isa
@pytest.mark.parametrize(("nq", "dim"), PAIRS[::4])
def test_own_documents_are_some_of_all(nq: int, dim: int, rng: np.random.Generator) -> None:
    queries, documents = unit_vectors(rng, 2, nq, dim), unit_vectors(rng, DOCLENS.sum(), dim)
    arguments = (queries, documents, DOCLENS)
    own = ops.maxsim(*arguments, documents_per_query=OWN, return_argmax=True)
    truth = reference.maxsim(*arguments, documents_per_query=OWN)
    assert own[0].shape == truth.shape == (2, OWN)
    for ours, everything in zip(own, ops.maxsim(*arguments, return_argmax=True), strict=True):
        assert same_bits(ours, np.stack([everything[0, :OWN], everything[1, OWN:]]))
    assert same_bits(own[0], ops.maxsim(*arguments, documents_per_query=OWN))
    expected = plain(queries[1], documents, DOCLENS)[OWN:]
    assert_close(own[0][1], truth[1], expected, "maxsim", terms=nq)


def plain_gradients(
    queries: np.ndarray, documents: np.ndarray, doclens: np.ndarray, argmax: Any, grad: Any
) -> tuple[np.ndarray, np.ndarray]:
    """By the query and by the documents, in the type of the arguments."""
    by_query, by_documents = np.zeros_like(queries), np.zeros_like(documents)
    starts = np.broadcast_to(np.cumsum(doclens) - doclens, (len(queries), len(doclens)))
    if argmax.shape[1] < len(doclens):
        starts = starts[0].reshape(argmax.shape[:2])
    for b, c, q in np.argwhere(argmax >= 0):
        row = starts[b, c] + argmax[b, c, q]
        by_query[b, q] += grad[b, c] * documents[row]
        by_documents[row] += grad[b, c] * queries[b, q]
    return by_query, by_documents


@any_threads
@every_isa
@pytest.mark.parametrize("own", [None, OWN])
@pytest.mark.parametrize(("nq", "dim"), PAIRS[::4])
def test_gradients_match_reference(
    nq: int, dim: int, own: int | None, rng: np.random.Generator
) -> None:
    queries, documents = unit_vectors(rng, 2, nq, dim), unit_vectors(rng, DOCLENS.sum(), dim)
    arguments = (queries, documents, DOCLENS)
    _, argmax = ops.maxsim(*arguments, documents_per_query=own, return_argmax=True)
    grad = rng.standard_normal(argmax.shape[:2]).astype(np.float32)
    met = (DOCLENS, argmax, grad)
    by_query, by_documents = plain_gradients(*arguments, argmax, grad)
    ours, truth = (
        ops.maxsim_grad_query(documents, *met),
        reference.maxsim_grad_query(documents, *met),
    )
    assert_close(ours, truth, by_query, "gradient", terms=len(DOCLENS))
    ours = ops.maxsim_grad_documents(queries, *met)
    truth = reference.maxsim_grad_documents(queries, *met)
    assert_close(ours, truth, by_documents, "gradient", terms=nq)


@every_isa
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradient_from_half_documents(dtype: str, rng: np.random.Generator) -> None:
    torch: Any = pytest.importorskip("torch", reason="bfloat16 arrays come from torch")
    documents = torch.from_numpy(unit_vectors(rng, DOCLENS.sum(), 24)).to(getattr(torch, dtype))
    query, doclens = torch.from_numpy(unit_vectors(rng, 1, 17, 24)), torch.from_numpy(DOCLENS)
    scores, argmax = ops.maxsim(query, documents, doclens, return_argmax=True)
    ours = ops.maxsim_grad_query(documents, doclens, argmax, scores.sign())
    assert ours.dtype == torch.float32
    wide = ops.maxsim_grad_query(documents.float(), doclens, argmax, scores.sign())
    assert same_bits(ours, wide)


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
    assert ops.maxsim(query[:0], query, np.array([0, 2], np.int32)).tolist() == [-np.inf, 0]
    for n_docs in (0, 3):
        doclens, grad = np.zeros(n_docs, np.int32), np.ones((1, n_docs), np.float32)
        argmax = np.full((1, n_docs, 2), -1, np.int32)
        assert not ops.maxsim_grad_query(none, doclens, argmax, grad).any()
        assert ops.maxsim_grad_documents(query[None], doclens, argmax, grad).shape == (0, 8)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"argmax": np.full((2, 1, 3), 2, np.int32)}, "`argmax`.*2 for document 0 of 2 tokens"),
        ({"argmax": np.full((2, 1, 3), -2, np.int32)}, "`argmax`.*-2"),
        ({"argmax": np.zeros((2, 2, 3), np.int32)}, "`argmax`"),
        ({"grad": np.ones((2, 3), np.float32)}, "`grad`.*2 documents.*2 rows of 3"),
        ({"doclens": np.array([2, -3], np.int32)}, "`doclens`.*-3"),
        ({"doclens": np.array([2, 3, 0], np.int32)}, "`grad`.*3 documents.*2 rows of 1"),
    ],
)
def test_wrong_gradients_are_named(change: dict[str, np.ndarray], message: str) -> None:
    met = {
        "doclens": np.array([2, 3], np.int32),
        "argmax": np.ones((2, 1, 3), np.int32),
        "grad": np.ones((2, 1), np.float32),
    }
    query, documents = np.ones((2, 3, 8), np.float32), np.ones((5, 8), np.float32)
    for function, other in (
        (ops.maxsim_grad_query, {"documents": documents}),
        (ops.maxsim_grad_documents, {"query": query}),
    ):
        function(**other, **met)
        with pytest.raises(ValueError, match=message):
            function(**other, **{**met, **change})


def test_own_documents_must_be_as_many_for_each_query() -> None:
    queries, documents = np.ones((2, 1, 8), np.float32), np.ones((3, 8), np.float32)
    for own in (1, 2, 0, -1):
        with pytest.raises(ValueError, match=f"`documents_per_query`.*2 queries.*3 doc.*got {own}"):
            ops.maxsim(queries, documents, np.ones(3, np.int32), documents_per_query=own)
