"""The specification of the k-means family; part of :mod:`colbert_fast.kernels.reference`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["accumulate", "assign", "group_centroids"]

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

LEAST_CENTROIDS = 1024
"""Fewer than this are never grouped."""

REACH = 0.28
"""How far below that of its best head the cosine of a head may be that a point looks behind."""

GROUPING_STEPS, SMALLEST_NORM = 8, 1e-6


def assign(points: Array, centroids: Float32, *, exact: bool = True) -> tuple[Int32, Float32]:
    """Centroid (K, dim) with the largest dot product with each point (n, dim), and that product.

    Of equal products the lowest centroid wins. Returns codes int32 (n,) and best float32 (n,).

    Not exact, and with `LEAST_CENTROIDS` or more: only centroids count whose group has a head
    (:func:`group_centroids`) within `REACH` of the point's best one. The kernel compares int8
    estimates, of heads and then of centroids, and settles by exact products what is close there, so
    a point near a border may be decided otherwise.
    """
    wide = points.astype(np.float64)
    similarities = wide @ centroids.astype(np.float64).T
    if not exact and len(centroids) >= LEAST_CENTROIDS:
        heads, groups = group_centroids(centroids)
        near = wide @ heads.astype(np.float64).T
        limit = near.max(axis=1) - REACH * np.linalg.norm(wide, axis=1)
        similarities[(near < limit[:, None])[:, groups]] = -np.inf
    return similarities.argmax(axis=1).astype(np.int32), similarities.max(axis=1).astype(np.float32)


def group_centroids(centroids: Float32) -> tuple[Float32, Int32]:
    """Heads (G, dim), unit means of neighbouring centroids (K, dim), and the head of each (K,).

    Spherical k-means of the centroids from evenly spread ones; G is about 6 * sqrt(K), a multiple
    of 16.
    """
    num_groups = int(6 * len(centroids) ** 0.5) // 16 * 16
    heads = centroids[np.arange(num_groups) * len(centroids) // num_groups]
    for _ in range(GROUPING_STEPS):
        sums, _ = accumulate(centroids, assign(centroids, heads)[0], num_groups)
        norms = np.linalg.norm(sums.astype(np.float64), axis=1, keepdims=True)
        moved = sums / np.maximum(norms, SMALLEST_NORM)
        heads = np.where(norms > SMALLEST_NORM, moved, heads).astype(np.float32)
    return heads, assign(centroids, heads)[0]


def accumulate(points: Array, codes: Int32, num_centroids: int) -> tuple[Float32, Int64]:
    """Sum (K, dim) float32 and number (K,) int64 of the points (n, dim) of each cluster."""
    sums = np.zeros((num_centroids, points.shape[1]))
    np.add.at(sums, codes, points.astype(np.float64))
    return sums.astype(np.float32), np.bincount(codes, minlength=num_centroids).astype(np.int64)
