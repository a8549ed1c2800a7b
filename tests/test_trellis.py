"""Residuals coded by a trellis and a scale: the code itself, what reads it, how it is fitted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from colbert_fast import _core
from colbert_fast.compress.levels import lloyd_max
from colbert_fast.compress.trellis import fit_trellis
from colbert_fast.kernels import ops, reference
from support import (
    DIMS,
    DOCLENS,
    LANES,
    NBITS,
    every_isa,
    make_trellis_collection,
    same_bits,
    unit_vectors,
    use_isa,
)
from tolerances import PUBLISHED, assert_close, assert_int8

TRELLIS = (1, 2, 3)
"""Bits whose weights are 16 by window; with 4 and 8 there is a weight for every bucket."""

CODEC_PAIRS = [(nbits, dim) for nbits in NBITS for dim in (8, 24, 48, 128, 136)]
CODEC_PAIRS += [(nbits, 768) for nbits in NBITS]


def own_weights(rng: np.random.Generator, nbits: int) -> np.ndarray:
    """Weights in no order, so that each must be looked up under its own number."""
    return rng.standard_normal(16 if nbits in TRELLIS else 2**nbits).astype(np.float32)


def squared_errors(targets: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Of each target (n, dim) from what its row decodes to, at the best scale: float64 (n,)."""
    nbits = rows.shape[1] * 8 // targets.shape[1]
    by_bucket = len(weights) == 2**nbits
    index = ops.unpack_residuals(rows, nbits) if by_bucket else reference.windows(rows, nbits)
    values, targets = weights.astype(np.float64)[index], targets.astype(np.float64)
    products, squares = (targets * values).sum(axis=1), np.square(values).sum(axis=1)
    scales = np.maximum(products, 0) / np.where(squares > 0, squares, 1)
    return np.square(targets - scales[:, None] * values).sum(axis=1)


# ---- compress_trellis


@pytest.mark.parametrize("fitted", [True, False], ids=["fitted", "any weights"])
@pytest.mark.parametrize("dim", [8, 24, 48])
@pytest.mark.parametrize("nbits", NBITS)
def test_rows_are_as_near_as_those_of_the_reference(
    nbits: int, dim: int, fitted: bool, rng: np.random.Generator
) -> None:
    centroids = unit_vectors(rng, 7, dim)
    home = centroids[rng.integers(7, size=40)]
    points = home + np.float32(0.3) * unit_vectors(rng, 40, dim)
    weights = fit_trellis(points - home, nbits) if fitted else own_weights(rng, nbits)
    points = points[: 2 if nbits == 8 else 4]
    codes, rows, scales = reference.compress_trellis(points, centroids, weights, nbits)
    targets = points.astype(np.float64) - centroids[codes]
    truth = squared_errors(targets, rows, weights)
    for name in _core.available_isas():
        with use_isa(name):
            ours = ops.compress_trellis(points, centroids, weights, nbits)
        assert [each.dtype for each in ours] == [np.int32, np.uint8, np.uint8]
        np.testing.assert_array_equal(ours[0], codes)
        assert ours[1].shape == rows.shape
        errors = squared_errors(targets, ours[1], weights)
        np.testing.assert_allclose(errors, truth, rtol=1e-4, atol=1e-7)
        # Rows of random points are the same ones; another is one that ties to within rounding.
        assert (ours[1] == rows).all(axis=1).mean() >= 0.5
        assert np.abs(ours[2].astype(int) - scales).max() <= 1


@pytest.mark.parametrize("nbits", NBITS)
def test_the_row_is_the_nearest_of_all(nbits: int, rng: np.random.Generator) -> None:
    # The scale is given by a target that a row decodes to: that row has no error.
    weights = own_weights(rng, nbits)
    rows = rng.integers(0, 256, (50, 24 * nbits // 8), dtype=np.uint8)
    by_bucket = len(weights) == 2**nbits
    index = ops.unpack_residuals(rows, nbits) if by_bucket else reference.windows(rows, nbits)
    targets = np.ascontiguousarray(weights[index])
    weights /= np.float32(np.sqrt(np.square(targets).sum(axis=1).mean()))
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    origin = np.zeros((1, 24), np.float32)
    _, found, _ = ops.compress_trellis(targets, origin, weights, nbits)
    errors = squared_errors(targets, found, weights)
    # The first path is for a scale of 1, which is near the right one; the second corrects most.
    assert np.median(errors) < {1: 0.1, 2: 0.03, 3: 0.02, 4: 0.02, 8: 0.005}[nbits]
    assert (found == rows).all(axis=1).any() or nbits == 8


@every_isa
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("nbits", NBITS)
def test_every_isa_and_number_of_points_gives_the_same_bits(
    nbits: int, dtype: str, rng: np.random.Generator
) -> None:
    for dim in range(8, 137, 8):
        weights = own_weights(rng, nbits) / np.float32(np.sqrt(dim))
        arrays = [unit_vectors(rng, 33, dim), unit_vectors(rng, 5, dim), weights]
        if dtype == "bfloat16":
            torch: Any = pytest.importorskip("torch", reason="bfloat16 arrays come from torch")
            arrays = [torch.from_numpy(each) for each in arrays]
            arrays[0] = arrays[0].bfloat16()
            wide = [arrays[0].float(), *arrays[1:]]
        else:
            arrays[0] = arrays[0].astype(dtype)
            wide = [arrays[0].astype(np.float32), *arrays[1:]]
        ours = ops.compress_trellis(*arrays, nbits)
        with use_isa("scalar"):
            assert same_bits(ours, ops.compress_trellis(*arrays, nbits))
        assert same_bits(ours, ops.compress_trellis(*wide, nbits))
        for n in (0, 1, 15, 16, 17):
            first = ops.compress_trellis(arrays[0][:n], *arrays[1:], nbits)
            assert same_bits(first, tuple(each[:n] for each in ours))


@every_isa
@pytest.mark.parametrize("nbits", NBITS)
def test_a_point_on_its_centroid_has_scale_zero(nbits: int, rng: np.random.Generator) -> None:
    centroids = unit_vectors(rng, 19, 48)
    weights = own_weights(rng, nbits)
    codes, rows, scales = ops.compress_trellis(centroids, centroids, weights, nbits)
    assert codes.tolist() == list(range(19))
    assert not scales.any()
    decoded = ops.decompress(codes, rows, centroids, weights, scales=scales)
    np.testing.assert_allclose(decoded, centroids, rtol=0, atol=PUBLISHED)


@every_isa
def test_scales_saturate(rng: np.random.Generator) -> None:
    origin, weights = np.zeros((1, 16), np.float32), fit_trellis(unit_vectors(rng, 50, 16), 2)
    lengths = np.array([1e-3, 1 / 50, 1, 3.5, 100], np.float32)
    points = np.repeat(unit_vectors(rng, 1, 16), 5, axis=0) * lengths[:, None]
    _, _, scales = ops.compress_trellis(points, origin, weights, 2)
    assert scales[4] == 255
    assert scales[0] == 0
    inside = reference.decode_scales(scales[1:4]) / lengths[1:4]
    np.testing.assert_allclose(inside, inside[1], rtol=0.025)  # half a byte is 1.1 %
    assert (np.diff(scales.astype(int)) > 0).all()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"nbits": 5}, "nbits"),
        ({"nbits": 0}, "nbits"),
        ({"nbits": 4}, None),  # 16 weights are those of 4 bits, too
        ({"nbits": 8}, "weights.* 256 "),
        ({"weights": np.zeros(8, np.float32)}, r"weights.* 4 values \(or 16, of a trellis\)"),
        ({"weights": np.zeros((4, 4), np.float32)}, "weights"),
        ({"weights": np.full(16, np.nan, np.float32)}, "weights.* finite"),
        ({"centroids": np.zeros((0, 8), np.float32)}, "centroids"),
        ({"centroids": np.zeros((3, 16), np.float32)}, "centroids"),
        ({"embeddings": np.zeros((2, 12), np.float32)}, "embeddings"),
    ],
)
def test_mistakes_in_compressing_are_named(change: dict[str, Any], name: str | None) -> None:
    arguments: dict[str, Any] = {
        "embeddings": np.ones((2, 8), np.float32),
        "centroids": np.ones((3, 8), np.float32),
        "weights": np.linspace(-1, 1, 16, dtype=np.float32),
        "nbits": 2,
    }
    ops.compress_trellis(**arguments)
    if name is None:
        ops.compress_trellis(**{**arguments, **change})
        return
    with pytest.raises(ValueError, match=name):
        ops.compress_trellis(**{**arguments, **change})


# ---- what reads the rows


def any_vectors(
    rng: np.random.Generator, nbits: int, dim: int, n: int
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Codes, rows, centroids and weights, and scales: every row of bits means something."""
    codes = rng.integers(0, 33, n).astype(np.int32)
    rows = rng.integers(0, 256, (n, dim * nbits // 8), dtype=np.uint8)
    weights = own_weights(rng, nbits) / np.float32(np.sqrt(dim))
    scales = rng.integers(100, 220, n, dtype=np.uint8)  # .14 to 1.8
    scales[::7] = 0
    return (codes, rows, unit_vectors(rng, 33, dim), weights), scales


@every_isa
@pytest.mark.parametrize("code_type", [np.int32, np.uint16])
@pytest.mark.parametrize(("nbits", "dim"), CODEC_PAIRS)
def test_decompress(nbits: int, dim: int, code_type: Any, rng: np.random.Generator) -> None:
    (codes, rows, centroids, weights), scales = any_vectors(rng, nbits, dim, 65)
    vectors = (codes.astype(code_type), rows, centroids, weights)
    for kept in (scales, None):
        ours = ops.decompress(*vectors, scales=kept)
        truth = reference.decompress(*vectors, scales=kept)
        assert_close(ours, truth, plain_decompress(*vectors, kept), "decompress")
        norms = ops.inverse_norms(*vectors, scales=kept)
        # A norm that falls on the edge between two bytes may take either.
        right = reference.inverse_norms(*vectors, scales=kept)
        assert np.abs(norms.astype(int) - right).max() <= 1
        # With a scale of 0 it is 1, and always does.
        assert (norms != right)[(scales > 0) | (kept is None)].mean() <= 0.02


def plain_decompress(
    codes: Any, rows: Any, centroids: Any, weights: Any, scales: Any
) -> np.ndarray:
    """Decompression in float32 numpy."""
    nbits = rows.shape[1] * 8 // centroids.shape[1]
    by_bucket = len(weights) == 2**nbits
    index = ops.unpack_residuals(rows, nbits) if by_bucket else reference.windows(rows, nbits)
    values = weights[index]
    if scales is not None:
        values = values * reference.decode_scales(scales).astype(np.float32)[:, None]
    vectors = centroids[codes] + values
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))


@every_isa
@pytest.mark.parametrize("nbits", NBITS)
def test_every_byte_of_scale(nbits: int, rng: np.random.Generator) -> None:
    (codes, rows, centroids, weights), _ = any_vectors(rng, nbits, 32, 256)
    vectors, scales = (codes, rows, centroids, weights), np.arange(256, dtype=np.uint8)
    ours = ops.decompress(*vectors, scales=scales)
    truth = reference.decompress(*vectors, scales=scales)
    assert_close(ours, truth, plain_decompress(*vectors, scales), "decompress")


SCORING = [(nq, NBITS[i % 5], DIMS[(3 * i) % 8]) for i, nq in enumerate(LANES)]
SCORING += [(32, nbits, dim) for nbits in NBITS for dim in (24, 128)]


@every_isa
@pytest.mark.parametrize("with_scales", [True, False], ids=["scales", "no scales"])
@pytest.mark.parametrize(("nq", "nbits", "dim"), SCORING)
def test_scores(nq: int, nbits: int, dim: int, with_scales: bool, rng: np.random.Generator) -> None:
    vectors, scales = any_vectors(rng, nbits, dim, int(DOCLENS.sum()))
    kept: dict[str, Any] = {"scales": scales if with_scales else None}
    query = unit_vectors(rng, nq, dim)
    arguments = (query, *vectors[:2], DOCLENS, *vectors[2:])
    exact = ops.residual_maxsim(*arguments, **kept)
    assert same_bits(exact, ops.maxsim(query, ops.decompress(*vectors, **kept), DOCLENS))
    if nq <= 32:
        truth = reference.residual_maxsim(*arguments, **kept)
        np.testing.assert_allclose(exact, truth, rtol=0, atol=PUBLISHED)
    kept["inverse_norms"] = reference.inverse_norms(*vectors, **kept)
    assert_int8(ops.residual_maxsim(*arguments, precision="int8", **kept), *arguments, **kept)


@every_isa
def test_int8_scores_stay_close_to_exact_ones(rng: np.random.Generator) -> None:
    for nbits in NBITS:
        data = make_trellis_collection(rng, nq=32, dim=128, nbits=nbits)
        vectors = (data.codes, data.residuals, data.doclens, data.centroids, data.weights)
        exact = ops.residual_maxsim(data.query, *vectors, scales=data.scales)
        norms = {"precision": "int8", "inverse_norms": data.inverse_norms}
        coarse = ops.residual_maxsim(data.query, *vectors, scales=data.scales, **norms)
        filled = data.doclens > 0
        assert np.abs(coarse[filled] - exact[filled]).max() < 0.2
        assert np.abs(coarse[filled] - exact[filled]).mean() < 0.06


@pytest.mark.parametrize(
    ("change", "error", "name"),
    [
        ({"scales": np.zeros(3, np.uint8)}, ValueError, "scales"),
        ({"scales": np.zeros((4, 1), np.uint8)}, ValueError, "scales"),
        ({"scales": np.zeros(4, np.float32)}, TypeError, "scales"),
        ({"scales": np.zeros(8, np.uint8)[::2]}, ValueError, "scales"),
        ({"scales": [0, 0, 0, 0]}, TypeError, "scales"),
        ({"weights": np.zeros(15, np.float32)}, ValueError, r"weights.* 4 values \(or 16"),
        ({"weights": np.zeros(17, np.float32)}, ValueError, r"weights.* 4 values \(or 16"),
        ({"weights": np.full(16, np.inf, np.float32)}, ValueError, "weights.* finite"),
        ({"residuals": np.zeros((4, 5), np.uint8)}, ValueError, "residuals"),  # 5 bits
        ({"residuals": np.zeros((4, 8), np.uint8)}, ValueError, "weights.* 256 values for"),
        ({"residuals": np.zeros((4, 0), np.uint8)}, ValueError, "residuals"),
    ],
)
def test_mistakes_in_decoding_are_named(
    change: dict[str, Any], error: type[Exception], name: str
) -> None:
    vectors: dict[str, Any] = {
        "codes": np.zeros(4, np.int32),
        "residuals": np.zeros((4, 2), np.uint8),
        "centroids": np.ones((9, 8), np.float32),
        "weights": np.ones(16, np.float32),
        "scales": np.full(4, 192, np.uint8),
    }
    query = {"query": np.ones((2, 8), np.float32), "doclens": np.array([4], np.int32)}
    for function, extra in (
        (ops.decompress, {}),
        (ops.inverse_norms, {}),
        (ops.residual_maxsim, query),
    ):
        function(**extra, **vectors)
        with pytest.raises(error, match=name):
            function(**{**extra, **vectors, **change})


# ---- fit_trellis


@pytest.mark.parametrize(("nbits", "bound"), [(1, 0.315), (2, 0.098), (3, 0.031)])
def test_normal_residuals_err_less_than_the_best_scalar_levels_allow(
    nbits: int, bound: float, rng: np.random.Generator
) -> None:
    residuals = rng.standard_normal((3000, 128)).astype(np.float32)
    residuals *= rng.uniform(0.01, 0.1, (3000, 1)).astype(np.float32)  # each has its own scale
    weights = fit_trellis(residuals[1500:], nbits)
    origin, residuals = np.zeros((1, 128), np.float32), residuals[:1500]
    _, rows, scales = ops.compress_trellis(residuals, origin, weights, nbits)
    values = weights.astype(np.float64)[reference.windows(rows, nbits)]
    decoded = reference.decode_scales(scales)[:, None] * values
    squares = np.square(residuals, dtype=np.float64).sum(axis=1)
    error = (np.square(residuals - decoded).sum(axis=1) / squares).mean()
    assert error <= bound
    units = residuals / np.sqrt(squares)[:, None].astype(np.float32)
    cutoffs, levels = lloyd_max(np.sort(units, axis=None), 2**nbits)
    scalar = np.square(units - levels[np.searchsorted(cutoffs, units)]).sum(axis=1).mean()
    assert error < 0.9 * scalar


@pytest.mark.parametrize("nbits", NBITS)
def test_weights_lie_where_int8_can_count(nbits: int, rng: np.random.Generator) -> None:
    weights = fit_trellis(unit_vectors(rng, 500, 32), nbits)
    assert weights.dtype == np.float32
    assert weights.shape == (16 if nbits in TRELLIS else 2**nbits,)
    if nbits == 8:
        assert (np.diff(weights) >= 0).all()
        return
    steps = (weights - weights.min()) / ((weights.max() - weights.min()) / 127)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    assert len(np.unique(np.rint(steps))) > len(weights) // 2


@pytest.mark.parametrize("nbits", NBITS)
@pytest.mark.parametrize("n", [1, 2, 30])
def test_residuals_of_zero_give_finite_weights(nbits: int, n: int) -> None:
    weights = fit_trellis(np.zeros((n, 16), np.float32), nbits)
    assert np.isfinite(weights).all()
    zero = np.zeros((3, 16), np.float32)
    assert not ops.compress_trellis(zero, zero[:1], weights, nbits)[2].any()


@pytest.mark.parametrize("nbits", NBITS)
def test_a_single_residual(nbits: int, rng: np.random.Generator) -> None:
    residual = unit_vectors(rng, 1, 64) * np.float32(0.2)
    weights = fit_trellis(residual, nbits)
    assert np.isfinite(weights).all()
    _, rows, _ = ops.compress_trellis(residual, np.zeros((1, 64), np.float32), weights, nbits)
    bound = {1: 0.4, 2: 0.15, 3: 0.06, 4: 0.02, 8: 1e-3}[nbits]
    assert squared_errors(residual, rows, weights)[0] <= bound * 0.2**2
