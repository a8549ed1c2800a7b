"""Building an index; k-means alone against torch and numpy, token pooling against scipy."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import baselines as base
import numpy as np
import pytest
import torch
from machine import Machine
from scipy.cluster.hierarchy import fcluster, linkage

from colbert_fast import Index
from colbert_fast.compress.kmeans import fit_centroids
from colbert_fast.kernels import ops

ITERATIONS, SEED = 2, 42
POOLED_TOKENS, POOL_FACTOR = 128, 2


class Size(NamedTuple):
    """How much to build."""

    n_docs: int
    num_centroids: int


@pytest.fixture(scope="module")
def size(request: pytest.FixtureRequest) -> Size:
    return Size(64, 64) if request.config.getoption("benchmark_disable") else Size(1024, 1024)


@pytest.fixture(scope="module")
def points(size: Size) -> np.ndarray:
    """Token vectors (n, dim) round four times as many centres as there will be centroids."""
    rng = np.random.default_rng(7)
    centres = rng.standard_normal((4 * size.num_centroids, base.DIM), np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    return base.clustered(rng, centres, size.n_docs * base.DOCUMENT_TOKENS)


def start_of(points: np.ndarray, num_centroids: int) -> np.ndarray:
    """The same random start for the baselines."""
    chosen = np.random.default_rng(SEED).choice(len(points), num_centroids, replace=False)
    return points[chosen]


def torch_kmeans(points: np.ndarray, num_centroids: int) -> np.ndarray:
    x, centroids = torch.from_numpy(points), torch.from_numpy(start_of(points, num_centroids))
    for _ in range(ITERATIONS):
        codes = torch.cat([(block @ centroids.T).argmax(1) for block in x.split(512)])
        sums = torch.zeros_like(centroids).index_add_(0, codes, x)
        centroids = torch.nn.functional.normalize(sums, dim=1)
    return centroids.numpy()


def numpy_kmeans(points: np.ndarray, num_centroids: int) -> np.ndarray:
    centroids = start_of(points, num_centroids)
    for _ in range(ITERATIONS):
        blocks = (points[i : i + 512] for i in range(0, len(points), 512))
        codes = np.concatenate([(block @ centroids.T).argmax(1) for block in blocks])
        order = np.argsort(codes, kind="stable")
        cells, starts = np.unique(codes[order], return_index=True)
        sums = np.zeros_like(centroids)
        sums[cells] = np.add.reduceat(points[order], starts)
        centroids = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return centroids.astype(np.float32)


def our_kmeans(points: np.ndarray, num_centroids: int) -> np.ndarray:
    return fit_centroids(points, num_centroids, iterations=ITERATIONS, seed=SEED)


def mean_cosine(points: np.ndarray, centroids: np.ndarray) -> float:
    """Quality of a clustering: mean cosine of a sample of points to their nearest centroids."""
    return float((points[:4096] @ centroids.T).max(axis=1).mean())


@pytest.mark.parametrize("kmeans", [our_kmeans, torch_kmeans, numpy_kmeans])
def test_kmeans(benchmark: Any, points: np.ndarray, size: Size, kmeans: Any, threads: int) -> None:
    benchmark.group = f"k-means, {threads} threads"
    centroids = benchmark.pedantic(kmeans, (points, size.num_centroids), rounds=3, warmup_rounds=1)
    plain = torch_kmeans(points, size.num_centroids)
    assert mean_cosine(points, centroids) >= mean_cosine(points, plain) - 0.005
    if benchmark.enabled:
        work = 2 * ITERATIONS * points.size * size.num_centroids
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["GFLOP/s"] = round(work / seconds / 1e9, 1)
        benchmark.extra_info["floor, s"] = round(work / Machine.measure().float32 / threads, 3)


def our_pool(points: np.ndarray) -> np.ndarray:
    doclens = np.full(len(points) // POOLED_TOKENS, POOLED_TOKENS, np.int32)
    return ops.pool(points, doclens, POOL_FACTOR, protected=0)[0]


def scipy_pool(points: np.ndarray) -> np.ndarray:
    """Document by document, as PyLate pools."""
    upper, pooled = np.triu_indices(POOLED_TOKENS, k=1), []
    for rows in points.reshape(-1, POOLED_TOKENS, base.DIM):
        distances = np.maximum(1 - (rows @ rows.T)[upper], 0)
        tree = linkage(distances, method="ward")
        labels = fcluster(tree, t=POOLED_TOKENS // POOL_FACTOR, criterion="maxclust")
        firsts = np.sort(np.unique(labels, return_index=True)[1])
        member = (labels[firsts][:, None] == labels).astype(np.float32)
        pooled.append(member @ rows / member.sum(axis=1, keepdims=True))
    return np.concatenate(pooled)


@pytest.mark.parametrize("pool", [our_pool, scipy_pool])
def test_pool(benchmark: Any, points: np.ndarray, pool: Any, threads: int) -> None:
    points = points[: len(points) // POOLED_TOKENS * POOLED_TOKENS]
    benchmark.group = f"token pooling by {POOL_FACTOR}, {threads} threads"
    pooled = benchmark.pedantic(pool, (points,), rounds=3, warmup_rounds=1)
    expected = scipy_pool(points)
    assert pooled.shape == expected.shape
    # Two pairs of rows may be equally far apart up to rounding.
    assert (np.abs(pooled - expected).max(axis=1) < 1e-6).mean() > 0.999
    if benchmark.enabled:
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["ns per token"] = round(seconds / len(points) * 1e9, 1)


@pytest.mark.parametrize("nbits", [2, 4])
def test_build(
    benchmark: Any, points: np.ndarray, size: Size, nbits: int, threads: int, tmp_path: Path
) -> None:
    documents = np.split(points, size.n_docs)
    names = (tmp_path / str(i) for i in itertools.count())

    def build() -> Index:
        return Index.build(
            next(names), documents, nbits=nbits, num_centroids=size.num_centroids, progress=False
        )

    benchmark.group = f"Index.build, {threads} threads"
    index = benchmark.pedantic(build, rounds=3)
    for position in (0, size.n_docs - 1):
        assert index.search(documents[position], k=1)[0].id == position
    if benchmark.enabled:
        tokens_per_second = len(points) / benchmark.stats.stats.median
        benchmark.extra_info["tokens/s"] = round(tokens_per_second)
        benchmark.extra_info["bytes/token"] = round(index.info()["bytes_per_token"], 1)
