"""Spherical k-means: finds clusters, wastes no centroid, and gives the same bits every time."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from colbert_fast.compress import kmeans
from colbert_fast.compress.kmeans import fit_centroids
from support import use_threads
from synthetic import unit


def blobs(rng: np.random.Generator, clusters: int = 20, each: int = 50) -> np.ndarray:
    centres = np.repeat(unit(rng.standard_normal((clusters, 64))), each, axis=0)
    noise = unit(rng.standard_normal(centres.shape)) * 0.3
    return rng.permutation(unit(centres + noise))


def mean_best(points: np.ndarray, centroids: np.ndarray) -> float:
    return float((points.astype(np.float32) @ centroids.T).max(axis=1).mean())


def test_centroids_are_unit_vectors_and_improve(rng: np.random.Generator) -> None:
    points = blobs(rng)
    quality = []
    for iterations in (0, 1, 4, 10):
        centroids = fit_centroids(points, 20, iterations=iterations)
        assert centroids.shape == (20, 64)
        assert centroids.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-6)
        quality.append(mean_best(points, centroids))
    assert quality == sorted(quality)
    assert quality[-1] > 0.85


def test_without_iterations_centroids_are_distinct_points(rng: np.random.Generator) -> None:
    points = blobs(rng)
    centroids = fit_centroids(points, 100, iterations=0)
    assert len(np.unique(centroids, axis=0)) == 100
    assert (points[:, None] == centroids[None]).all(axis=2).any(axis=0).mean() > 0.5


def test_the_seed_decides(rng: np.random.Generator) -> None:
    points = blobs(rng)
    first, again = (fit_centroids(points, 30, seed=1) for _ in range(2))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != fit_centroids(points, 30, seed=2).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_threads_do_not_show(rng: np.random.Generator, dtype: type) -> None:
    points = blobs(rng, each=300).astype(dtype)
    bits = []
    for count in (1, 2, 3, 8):
        with use_threads(count):
            bits.append(fit_centroids(points, 70).tobytes())
    assert bits == bits[:1] * 4


def test_blocks_do_not_show(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    points = blobs(rng)
    whole = fit_centroids(points, 70)
    monkeypatch.setattr(kmeans, "_BLOCK", 333)
    assert fit_centroids(points, 70).tobytes() == whole.tobytes()


def test_an_interrupt_is_heard_between_blocks(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def assign(points: np.ndarray, _: np.ndarray, *, exact: bool) -> None:
        nonlocal calls
        calls += 1
        assert len(points) == 333
        assert not exact
        raise KeyboardInterrupt

    monkeypatch.setattr(kmeans, "_BLOCK", 333)
    monkeypatch.setattr(kmeans.ops, "assign", assign)
    with pytest.raises(KeyboardInterrupt):
        fit_centroids(blobs(rng), 70)
    assert calls == 1


def test_float16_points_are_taken_as_they_are(rng: np.random.Generator) -> None:
    points = blobs(rng).astype(np.float16)
    centroids = fit_centroids(points, 20, iterations=10)
    assert mean_best(points, centroids) > 0.85


def test_more_centroids_than_points(
    rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    points = unit(rng.standard_normal((5, 64)))
    with caplog.at_level(logging.INFO, "colbert_fast"):
        centroids = fit_centroids(points, 8)
    assert "8 centroids cut to the 5 points" in caplog.text
    assert sorted(map(tuple, centroids.round(5))) == sorted(map(tuple, points.round(5)))


def test_empty_clusters_restart_where_points_are_served_worst(rng: np.random.Generator) -> None:
    # Nearly all points are copies of one: most starting centroids are the same vector.
    copies = np.repeat(unit(rng.standard_normal((1, 64))), 500, axis=0)
    others = unit(rng.standard_normal((12, 64)))
    points = np.concatenate([copies, others])
    centroids = fit_centroids(points, 13, iterations=4)
    nearest = (points @ centroids.T).argmax(axis=1)
    assert len(np.unique(nearest)) == 13
    assert mean_best(points, centroids) > 0.9999


def test_points_that_cancel_out(rng: np.random.Generator) -> None:
    half = unit(rng.standard_normal((1, 64)))
    centroids = fit_centroids(np.concatenate([half, -half]), 1, iterations=3)
    np.testing.assert_allclose(np.linalg.norm(centroids), 1, atol=1e-6)


def test_reports_every_iteration(rng: np.random.Generator) -> None:
    steps: list[int] = []
    fit_centroids(blobs(rng), 4, iterations=3, on_iteration=lambda: steps.append(1))
    assert len(steps) == 3


def test_arguments_out_of_range(rng: np.random.Generator) -> None:
    points = blobs(rng)
    with pytest.raises(ValueError, match="points: at least one"):
        fit_centroids(points[:0], 3)
    with pytest.raises(ValueError, match="num_centroids must be >= 1"):
        fit_centroids(points, 0)
    with pytest.raises(ValueError, match="iterations >= 0"):
        fit_centroids(points, 3, iterations=-1)
