"""The residual codec (pack, unpack, compress, decompress, fused scoring) against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from colbert_fast import _core
from colbert_fast.kernels import ops, reference
from support import (
    DIMS,
    DOCLENS,
    LANES,
    NBITS,
    every_isa,
    make_collection,
    same_bits,
    uniform_codec,
    unit_vectors,
)
from tolerances import PUBLISHED, assert_best, assert_close, assert_int8

CODEC_PAIRS = [(nbits, dim) for nbits in NBITS for dim in (8, 48, 96, 128, 136)]
CODEC_PAIRS += [(2, 768), (3, 768)]


def plain_decompress(codes: Any, residuals: Any, centroids: Any, weights: Any) -> np.ndarray:
    """Decompression in float32 numpy."""
    nbits = len(weights).bit_length() - 1
    vectors = centroids[codes] + weights[reference.unpack_residuals(residuals, nbits)]
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))


@every_isa
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("nbits", NBITS)
def test_pack_and_unpack(nbits: int, dim: int, rng: np.random.Generator) -> None:
    for n in (0, 1, 17):
        buckets = rng.integers(0, 2**nbits, (n, dim), dtype=np.uint8)
        packed = ops.pack_residuals(buckets, nbits)
        assert same_bits(packed, reference.pack_residuals(buckets, nbits))
        assert same_bits(ops.unpack_residuals(packed, nbits), buckets)


@settings(deadline=None, max_examples=50)
@given(data=st.data(), nbits=st.sampled_from(NBITS), dim=st.integers(1, 20), n=st.integers(0, 9))
def test_round_trip(data: st.DataObject, nbits: int, dim: int, n: int) -> None:
    values = hnp.arrays(np.uint8, (n, 8 * dim), elements=st.integers(0, 2**nbits - 1))
    buckets = data.draw(values)
    assert same_bits(ops.unpack_residuals(ops.pack_residuals(buckets, nbits), nbits), buckets)


@every_isa
def test_bit_order_is_that_of_plaid() -> None:
    row = np.array([[1, 0, 3, 2, 1, 0, 3, 2]], np.uint8)
    assert ops.pack_residuals(row, 2).tolist() == [[0x8D, 0x8D]]


def as_dtype(array: np.ndarray, dtype: str) -> Any:
    if dtype != "bfloat16":
        return array.astype(dtype)
    torch: Any = pytest.importorskip("torch", reason="bfloat16 arrays come from torch")
    return torch.from_numpy(array).bfloat16()


@every_isa
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("nbits", "dim"), CODEC_PAIRS)
def test_compress(nbits: int, dim: int, dtype: str, rng: np.random.Generator) -> None:
    centroids = unit_vectors(rng, LANES[(nbits + dim) % 16] + 20, dim)
    _, cutoffs = uniform_codec(nbits)
    points = as_dtype(unit_vectors(rng, 131, dim), dtype)
    arguments = [points, centroids, cutoffs]
    if dtype == "bfloat16":
        import torch

        arguments[1:] = [torch.from_numpy(argument) for argument in arguments[1:]]
        points = points.float().numpy()
    codes, residuals = (np.asarray(result) for result in ops.compress(*arguments))
    assert (codes.dtype, residuals.shape) == (np.int32, (131, dim * nbits // 8))
    wide = points.astype(np.float32)
    assert_best(codes, wide.astype(np.float64) @ centroids.T.astype(np.float64))
    # With the kernel's own codes the rest is exact: one float32 subtraction and comparisons.
    buckets = ((wide - centroids[codes])[:, :, None] > cutoffs).sum(axis=2).astype(np.uint8)
    assert same_bits(residuals, reference.pack_residuals(buckets, nbits))


@every_isa
def test_compress_ties() -> None:
    centroids = np.zeros((19, 8), np.float32)
    centroids[3:, 0] = 1
    cutoffs = np.array([-0.5, 0, 0.5], np.float32)
    points = np.array([[1, 0.5, 0.51, -0.5, -0.51, 0, 0.1, -0.1]] * 5, np.float32)
    codes, residuals = ops.compress(points, centroids, cutoffs)
    assert codes.tolist() == [3] * 5
    assert ops.unpack_residuals(residuals, 2).tolist() == [[1, 2, 3, 0, 0, 1, 2, 1]] * 5


@every_isa
@pytest.mark.parametrize("code_type", [np.int32, np.uint16])
@pytest.mark.parametrize(("nbits", "dim"), CODEC_PAIRS)
def test_decompress(nbits: int, dim: int, code_type: Any, rng: np.random.Generator) -> None:
    data = make_collection(rng, dim=dim, nbits=nbits, doclens=[65])
    arguments = (data.codes.astype(code_type), data.residuals, data.centroids, data.weights)
    ours, truth = ops.decompress(*arguments), reference.decompress(*arguments)
    assert_close(ours, truth, plain_decompress(*arguments), "decompress")
    np.testing.assert_allclose(ours, truth, rtol=0, atol=PUBLISHED)


@every_isa
@pytest.mark.parametrize("nbits", NBITS)
def test_decompress_uses_any_weights(nbits: int, rng: np.random.Generator) -> None:
    # Neither sorted nor symmetric: every weight must be looked up under its own number.
    data = make_collection(rng, dim=24, nbits=nbits, doclens=[65])
    weights = rng.standard_normal(2**nbits).astype(np.float32)
    arguments = (data.codes, data.residuals, data.centroids, weights)
    assert_close(
        ops.decompress(*arguments),
        reference.decompress(*arguments),
        plain_decompress(*arguments),
        "decompress",
    )


@every_isa
def test_zero_vectors_stay_zero() -> None:
    centroids, weights = np.zeros((1, 16), np.float32), np.array([0, 1], np.float32)
    codes, residuals = np.zeros(3, np.int32), np.zeros((3, 2), np.uint8)
    assert not ops.decompress(codes, residuals, centroids, weights).any()
    assert (ops.inverse_norms(codes, residuals, centroids, weights) == 255).all()


@every_isa
@pytest.mark.parametrize(("nbits", "dim"), CODEC_PAIRS)
def test_inverse_norms(nbits: int, dim: int, rng: np.random.Generator) -> None:
    data = make_collection(rng, dim=dim, nbits=nbits, doclens=[200])
    centroids = data.centroids * rng.uniform(0.2, 3, (len(data.centroids), 1)).astype(np.float32)
    arguments = (data.codes, data.residuals, centroids, data.weights)
    ours, truth = ops.inverse_norms(*arguments), reference.inverse_norms(*arguments)
    assert ours.dtype == np.uint8
    # A norm that falls on the edge between two bytes may take either.
    assert np.abs(ours.astype(int) - truth).max() <= 1
    assert (ours != truth).mean() <= 0.02


SCORING = [(nq, NBITS[i % 5], DIMS[(3 * i) % 8]) for i, nq in enumerate(LANES)]
SCORING += [(32, nbits, dim) for nbits in NBITS for dim in (96, 128)]


@every_isa
@pytest.mark.parametrize(("nq", "nbits", "dim"), SCORING)
def test_fused_scores(nq: int, nbits: int, dim: int, rng: np.random.Generator) -> None:
    data = make_collection(rng, nq=nq, nbits=nbits, dim=dim)
    vectors = (data.codes, data.residuals, data.centroids, data.weights)
    arguments = (data.query, data.codes, data.residuals, data.doclens, *vectors[2:])
    exact = ops.residual_maxsim(*arguments)
    assert same_bits(exact, ops.maxsim(data.query, ops.decompress(*vectors), data.doclens))
    if nq <= 32:
        truth = reference.residual_maxsim(*arguments)
        np.testing.assert_allclose(exact, truth, rtol=0, atol=PUBLISHED)


@every_isa
@pytest.mark.parametrize("code_type", [np.int32, np.uint16])
@pytest.mark.parametrize(("nq", "nbits", "dim"), SCORING)
def test_int8_scores(
    nq: int, nbits: int, dim: int, code_type: Any, rng: np.random.Generator
) -> None:
    data = make_collection(rng, nq=nq, nbits=nbits, dim=dim)
    arguments = (data.query, data.codes.astype(code_type), data.residuals, data.doclens)
    arguments += (data.centroids, data.weights)
    norms = {"inverse_norms": data.inverse_norms}
    ours = ops.residual_maxsim(*arguments, precision="int8", **norms)
    assert_int8(ours, *arguments, **norms)


@every_isa
@pytest.mark.parametrize(("nq", "nbits", "dim"), SCORING)
def test_contenders(nq: int, nbits: int, dim: int, rng: np.random.Generator) -> None:
    data = make_collection(rng, nq=nq, nbits=nbits, dim=dim, doclens=[53])
    vectors = (data.codes, data.residuals, data.centroids, data.weights)
    inverse_norms = data.inverse_norms

    def marked(slack: np.ndarray, relative: float) -> tuple[np.ndarray, float]:
        marks = np.full((53, -(-nq // 16)), 7, np.uint8)
        score = _core.contenders(data.query, *vectors, None, inverse_norms, slack, relative, marks)
        assert marks.max() <= 1
        return marks == 1, score

    slack = rng.uniform(0, 0.1, nq).astype(np.float32)
    for relative in (0.0, 0.2):
        marks, score = marked(slack, relative)
        less, more = (
            reference.contenders(
                data.query,
                *vectors,
                slack=slack + edge,
                relative=relative,
                inverse_norms=inverse_norms,
            )
            for edge in np.float32([-1e-5, 1e-5])
        )
        assert (less <= marks).all()
        assert (marks <= more).all()
        truth = reference.contenders_maxsim(data.query, *vectors, marks)
        assert score == pytest.approx(truth, abs=PUBLISHED)
    _, score = marked(slack + 100, 0.0)
    whole = ops.residual_maxsim(data.query, *vectors[:2], data.doclens, *vectors[2:])
    assert same_bits(np.float32(score), whole[0])


@every_isa
def test_int8_scores_of_a_zero_query_and_equal_weights(rng: np.random.Generator) -> None:
    data = make_collection(rng, nq=3, dim=16)
    above_zero = np.linspace(0.1, 0.100001, len(data.weights), dtype=np.float32)
    for query, weights in (
        (data.query * 0, data.weights),
        (data.query, data.weights * 0),
        (data.query, above_zero),
    ):
        arguments = (query, data.codes, data.residuals, DOCLENS, data.centroids, weights)
        norms = {"inverse_norms": data.inverse_norms}
        ours = ops.residual_maxsim(*arguments, precision="int8", **norms)
        assert_int8(ours, *arguments, **norms)


@every_isa
def test_int8_scores_of_zero_centroids_and_of_long_vectors(rng: np.random.Generator) -> None:
    data = make_collection(rng, nq=3, dim=16)
    for centroids in (data.centroids * 0, data.centroids * np.float32(5)):
        query = data.query * np.float32([[0], [3], [0.01]])
        vectors = (data.codes, data.residuals, centroids, data.weights)
        norms = {"inverse_norms": reference.inverse_norms(*vectors)}
        arguments = (query, *vectors[:2], DOCLENS, *vectors[2:])
        ours = ops.residual_maxsim(*arguments, precision="int8", **norms)
        assert_int8(ours, *arguments, **norms)


def test_int8_wants_finite_centroids(rng: np.random.Generator) -> None:
    data = make_collection(rng)
    data.centroids[3, 2] = np.nan
    arguments = (data.query, data.codes, data.residuals, data.doclens, data.centroids, data.weights)
    with pytest.raises(ValueError, match="centroids"):
        ops.residual_maxsim(*arguments, precision="int8", inverse_norms=data.inverse_norms)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: ops.pack_residuals(np.full((1, 8), 4, np.uint8), 2), "buckets"),
        (lambda: ops.pack_residuals(np.zeros((1, 8), np.uint8), 5), "nbits"),
        (lambda: ops.pack_residuals(np.zeros((1, 12), np.uint8), 2), "buckets"),
        (lambda: ops.unpack_residuals(np.zeros((1, 8), np.uint8), 0), "nbits"),
        (lambda: ops.unpack_residuals(np.zeros((1, 7), np.uint8), 2), "packed"),
    ],
)
def test_packing_mistakes_are_named(call: Any, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        call()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"codes": np.full(4, 9, np.int32)}, "codes"),
        ({"codes": np.full(4, -1, np.int32)}, "codes"),
        ({"codes": np.zeros(3, np.int32)}, "codes|residuals"),
        ({"residuals": np.zeros((4, 5), np.uint8)}, "residuals"),
        ({"residuals": np.zeros((4, 3), np.uint8)}, "weights.* 8 values"),  # 3 bits have more
        ({"weights": np.zeros(5, np.float32)}, "weights"),
        ({"weights": np.zeros((2, 2), np.float32)}, "weights"),
        ({"centroids": np.zeros((9, 12), np.float32)}, "centroids"),
        ({"centroids": np.zeros((0, 8), np.float32)}, "centroids|codes"),
    ],
)
def test_decoding_mistakes_are_named(change: dict[str, Any], name: str) -> None:
    vectors: dict[str, Any] = {
        "codes": np.zeros(4, np.int32),
        "residuals": np.zeros((4, 2), np.uint8),
        "centroids": np.ones((9, 8), np.float32),
        "weights": np.ones(4, np.float32),
    }
    query = {"query": np.ones((2, 8), np.float32), "doclens": np.array([4], np.int32)}
    for function, extra in (
        (ops.decompress, {}),
        (ops.inverse_norms, {}),
        (ops.residual_maxsim, query),
    ):
        function(**extra, **vectors)
        with pytest.raises(ValueError, match=name):
            function(**{**extra, **vectors, **change})


@pytest.mark.parametrize("count", [0, 2, 5, 300])
def test_number_of_cutoffs_must_fit_a_bit_width(count: int) -> None:
    points = np.ones((2, 8), np.float32)
    with pytest.raises(ValueError, match="cutoffs"):
        ops.compress(points, points, np.zeros(count, np.float32))


def test_int8_wants_inverse_norms(rng: np.random.Generator) -> None:
    data = make_collection(rng)
    arguments = (data.query, data.codes, data.residuals, data.doclens, data.centroids, data.weights)
    with pytest.raises(ValueError, match="inverse_norms"):
        ops.residual_maxsim(*arguments, precision="int8")
    with pytest.raises(ValueError, match="inverse_norms"):
        ops.residual_maxsim(*arguments, precision="int8", inverse_norms=data.inverse_norms[1:])
    with pytest.raises(ValueError, match="precision"):
        ops.residual_maxsim(*arguments, precision="int4")
