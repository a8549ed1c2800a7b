"""The kernels of k-means against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from colbert_fast import _core
from colbert_fast.kernels import ops, reference
from support import PAIRS, every_isa, same_bits, unit_vectors, use_isa, use_threads
from tolerances import assert_best, assert_close


@every_isa
@pytest.mark.parametrize(("num_centroids", "dim"), PAIRS)
def test_assign(num_centroids: int, dim: int, rng: np.random.Generator) -> None:
    centroids = unit_vectors(rng, num_centroids, dim)
    for n in (1, 5, 300):
        points = unit_vectors(rng, n, dim)
        codes, best = ops.assign(points, centroids)
        similarities = points.astype(np.float64) @ centroids.T.astype(np.float64)
        assert (codes.dtype, codes.shape) == (np.int32, (n,))
        assert_best(codes, similarities)
        assert_close(best, similarities.max(axis=1), (points @ centroids.T).max(axis=1), "dot")


@every_isa
@pytest.mark.parametrize("scale", [0.0, 4e-31])
def test_screening_by_centroids_that_vanish(scale: float, rng: np.random.Generator) -> None:
    centroids = rng.uniform(-1, 1, (600, 16)).astype(np.float32) * np.float32(scale)
    points = unit_vectors(rng, 1024, 16)
    codes, best = ops.assign(points, centroids)
    few = [ops.assign(points[first : first + 64], centroids) for first in range(0, 1024, 64)]
    assert same_bits(codes, np.concatenate([each[0] for each in few]))
    assert same_bits(best, np.concatenate([each[1] for each in few]))


@every_isa
@pytest.mark.parametrize("n", [0, 1, 15, 255, 256, 257, 1025])
def test_assign_any_number_of_points(n: int, rng: np.random.Generator) -> None:
    points, centroids = unit_vectors(rng, n, 24), unit_vectors(rng, 70, 24)
    codes, _ = ops.assign(points, centroids)
    assert_best(codes, points.astype(np.float64) @ centroids.T.astype(np.float64))


@every_isa
def test_ties_go_to_the_lowest_centroid(rng: np.random.Generator) -> None:
    centroids = np.tile(unit_vectors(rng, 13, 16), (9, 1))  # every centroid nine times
    codes, _ = ops.assign(unit_vectors(rng, 400, 16), centroids)
    assert codes.max() < 13
    assert ops.assign(np.zeros((7, 16), np.float32), centroids)[0].tolist() == [0] * 7


@pytest.mark.parametrize("dim", [8, 48, 128])
def test_screening_changes_no_bit(dim: int, rng: np.random.Generator) -> None:
    """Many points are screened by int8 first; few at a time are not."""
    centroids = unit_vectors(rng, 600, dim)
    centroids[300:] = centroids[:300] + 1e-3 * rng.standard_normal((300, dim), np.float32)
    points = centroids[rng.integers(0, 600, 1100)] + 0.3 * unit_vectors(rng, 1100, dim)
    points[7] = 0
    points[8, 3] = np.nan
    points[9] *= 1e20
    results = [ops.assign(points, centroids)]
    with use_isa("scalar"):
        results.append(ops.assign(points, centroids))
    parts = [ops.assign(points[i : i + 500], centroids) for i in range(0, 1100, 500)]
    results.append((np.concatenate([c for c, _ in parts]), np.concatenate([b for _, b in parts])))
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])
    similarities = points.astype(np.float64) @ centroids.T.astype(np.float64)
    usable = np.isfinite(points).all(axis=1)
    assert_best(results[0][0][usable], similarities[usable])


def token_like(rng: np.random.Generator, centroids: np.ndarray, n: int) -> np.ndarray:
    """Unit vectors at a cosine of about 0.8 to a centroid."""
    near = centroids[rng.integers(0, len(centroids), n)]
    points = near + 0.75 * unit_vectors(rng, n, centroids.shape[1])
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def in_families(rng: np.random.Generator, num_centroids: int, dim: int) -> np.ndarray:
    """Centroids that have neighbours, as those of tokens do."""
    parents = unit_vectors(rng, num_centroids // 32, dim)
    return rng.permutation(token_like(rng, parents, num_centroids))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_two_levels_find_what_their_definition_says(dtype: Any, rng: np.random.Generator) -> None:
    centroids = in_families(rng, 2100, 64)
    points = token_like(rng, centroids, 2500).astype(dtype)
    codes, best = ops.assign(points, centroids, exact=False)
    truth, _ = reference.assign(points, centroids, exact=False)
    exact, nearest = ops.assign(points, centroids)
    assert (codes == truth).mean() > 0.995
    assert (codes == exact).mean() > 0.98
    assert (nearest - best).mean() < 0.001
    scores = ops.centroid_scores(points[:64].astype(np.float32), centroids)
    assert same_bits(best[:64], scores[codes[:64], np.arange(64)])


def test_two_levels_look_at_some_centroids_only(rng: np.random.Generator) -> None:
    centroids = unit_vectors(rng, 1024, 64)  # no groups to be found
    points = unit_vectors(rng, 1000, 64)
    codes, best = ops.assign(points, centroids, exact=False)
    exact, nearest = ops.assign(points, centroids)
    assert (codes != exact).any()
    assert (best <= nearest).all()
    few, fewer = centroids[:1023], ops.assign(points, centroids[:1023])
    assert same_bits(ops.assign(points, few, exact=False), fewer)


def test_two_levels_have_the_same_bits_everywhere(rng: np.random.Generator) -> None:
    """On every instruction set, for any threads, and however many points come at once."""
    centroids = in_families(rng, 1024, 24)
    points = token_like(rng, centroids, 2300) * rng.uniform(0.1, 10, (2300, 1)).astype(np.float32)
    other = unit_vectors(rng, 1024, 8)
    results = []
    for isa in _core.available_isas():
        with use_isa(isa):
            ops.assign(other[:1], other, exact=False)  # the groups kept are of these now
            results.append(ops.assign(points, centroids, exact=False))
    for threads in (1, 2, 5):
        with use_threads(threads):
            results.append(ops.assign(points, centroids, exact=False))
    parts = [ops.assign(points[i : i + 333], centroids, exact=False) for i in range(0, 2300, 333)]
    results.append((np.concatenate([c for c, _ in parts]), np.concatenate([b for _, b in parts])))
    assert all(same_bits(result, results[0]) for result in results)


@every_isa
def test_two_levels_and_odd_vectors(rng: np.random.Generator) -> None:
    centroids = np.tile(in_families(rng, 530, 16), (2, 1))  # each of them twice
    points = token_like(rng, centroids, 60)
    points[3] = 0
    points[4, 5] = np.nan
    points[5, 5] = np.inf
    codes, best = ops.assign(points, centroids, exact=False)
    assert codes.max() < 530
    assert codes[3:6].tolist() == [0, 0, 0]
    assert best[3:6].tolist() == [0, -np.inf, -np.inf]
    assert (best[6:] > 0.5).all()
    centroids[7, 3] = np.nan  # cannot be grouped: all are looked at
    assert same_bits(ops.assign(points, centroids, exact=False), ops.assign(points, centroids))


def test_compress_assigns_in_two_levels(rng: np.random.Generator) -> None:
    centroids = unit_vectors(rng, 1024, 32)
    points = unit_vectors(rng, 3000, 32)
    codes, _ = ops.compress(points, centroids, np.zeros(1, np.float32))
    assert same_bits(codes, ops.assign(points, centroids, exact=False)[0])
    weights, few = np.linspace(-0.5, 0.5, 16, dtype=np.float32), points[:60]
    codes, *_ = reference.compress_trellis(few, centroids, weights, 4)
    assert same_bits(codes, reference.assign(few, centroids, exact=False)[0])


@every_isa
def test_all_products_negative() -> None:
    codes, best = ops.assign(-np.ones((3, 8), np.float32), np.full((33, 8), 0.5, np.float32))
    assert codes.tolist() == [0] * 3
    assert best.tolist() == [-4.0] * 3


@every_isa
@pytest.mark.parametrize("dim", [8, 16, 48, 136])
def test_float16_points(dim: int, rng: np.random.Generator) -> None:
    points, centroids = unit_vectors(rng, 100, dim).astype(np.float16), unit_vectors(rng, 40, dim)
    wide = points.astype(np.float32)
    codes, best = ops.assign(points, centroids)
    assert same_bits((codes, best), ops.assign(wide, centroids))
    assert same_bits(ops.accumulate(points, codes, 40), ops.accumulate(wide, codes, 40))


@every_isa
@pytest.mark.parametrize("dim", [8, 16, 48, 136])
def test_bfloat16_points(dim: int, rng: np.random.Generator) -> None:
    torch: Any = pytest.importorskip("torch", reason="bfloat16 arrays come from torch")
    points = torch.from_numpy(unit_vectors(rng, 100, dim)).bfloat16()
    centroids = torch.from_numpy(unit_vectors(rng, 40, dim))
    codes, best = ops.assign(points, centroids)
    assert same_bits((codes, best), ops.assign(points.float(), centroids))
    sums = ops.accumulate(points, codes, 40)
    assert same_bits(sums, ops.accumulate(points.float(), codes, 40))


@every_isa
@pytest.mark.parametrize(("num_clusters", "dim"), PAIRS)
def test_accumulate(num_clusters: int, dim: int, rng: np.random.Generator) -> None:
    points = rng.standard_normal((500, dim)).astype(np.float32)
    codes = rng.integers(0, num_clusters, 500).astype(np.int32)
    codes[codes == num_clusters // 2] = 0  # an empty cluster
    sums, counts = ops.accumulate(points, codes, num_clusters)
    # In point order, as np.add.at adds: not close but equal.
    in_order = np.zeros((num_clusters, dim), np.float32)
    np.add.at(in_order, codes, points)
    assert same_bits(sums, in_order)
    assert same_bits(counts, reference.accumulate(points, codes, num_clusters)[1])
    np.testing.assert_allclose(
        sums, reference.accumulate(points, codes, num_clusters)[0], atol=1e-4
    )


def test_a_whole_iteration_has_the_same_bits_for_any_threads(rng: np.random.Generator) -> None:
    points, centroids = unit_vectors(rng, 6000, 32), unit_vectors(rng, 200, 32)
    results = []
    for threads in (1, 2, 3, 7):
        with use_threads(threads):
            codes, best = ops.assign(points, centroids)
            results.append((codes, best, *ops.accumulate(points, codes, 200)))
    assert all(same_bits(result, results[0]) for result in results)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x, _: ops.assign(x, np.zeros((0, 8), np.float32)), "centroids"),
        (lambda x, _: ops.assign(x, np.zeros((3, 16), np.float32)), "points|centroids"),
        (lambda x, c: ops.accumulate(x, c + 3, 3), "codes"),
        (lambda x, c: ops.accumulate(x, c - 1, 3), "codes"),
        (lambda x, c: ops.accumulate(x, c[1:], 3), "codes|points"),
        (lambda x, c: ops.accumulate(x, c, 0), "num_centroids|codes"),
    ],
)
def test_mistakes_are_named(call: Any, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        call(np.ones((4, 8), np.float32), np.zeros(4, np.int32))
