"""Spherical k-means over token embeddings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from colbert_fast.arrays import as_array
from colbert_fast.compress.device import BuildDevice, place, room_for
from colbert_fast.kernels import ops

__all__ = ["fit_centroids"]

logger = logging.getLogger(__name__)

_SMALLEST_NORM = 1e-6  # a mean shorter than this has no direction: its points cancel out
_BLOCK = 1 << 16  # points assigned in one call: Ctrl-C is heard between calls
_SPARES = 4  # candidates looked at per empty cluster, to find that many different vectors


def fit_centroids(
    points: npt.NDArray[Any],
    num_centroids: int,
    *,
    iterations: int = 4,
    seed: int = 42,
    on_iteration: Callable[[], object] | None = None,
    device: BuildDevice = "cpu",
) -> npt.NDArray[np.float32]:
    """Cluster unit vectors by cosine (spherical k-means, Lloyd's iterations).

    Starts from random distinct points. Clusters that lose all their points restart from the
    points that are served worst; those that lose them by the last step do not, so that a few
    centroids may have none. The result depends on the seed only, not on the number of threads.

    From 1,024 centroids on points are assigned in two levels (`ops.assign` with ``exact=False``).

    Parameters
    ----------
    points
        float32 or float16 (n, dim), C-contiguous, rows of unit length. Not copied.
    num_centroids
        How many; reduced to n when there are fewer points.
    iterations
        Lloyd steps; 0 returns the starting points.
    seed
        Of the random start.
    on_iteration
        Called after every step (for a progress bar).
    device
        Where points are assigned and summed. With "cuda" all of them are copied there, and every
        centroid is looked at.

    Returns
    -------
    float32 (K, dim), rows of unit length.

    Raises
    ------
    ValueError
        There are no points, or a count is out of range.
    MemoryError
        `device` has no room for the points and what is computed of them.
    """
    if len(points) == 0:
        raise ValueError("points: at least one is needed, got none")
    if num_centroids < 1 or iterations < 0:
        raise ValueError(
            f"num_centroids must be >= 1 and iterations >= 0, got {num_centroids} and {iterations}"
        )
    if num_centroids > len(points):
        logger.info("k-means: %d centroids cut to the %d points", num_centroids, len(points))
        num_centroids = len(points)
    rng = np.random.default_rng(seed)
    start = rng.choice(len(points), num_centroids, replace=False)
    centroids = _unit_rows(points[start].astype(np.float32))
    with room_for(points, device, "with a smaller `memory_budget`"):
        placed = place(points, device)
        for step in range(iterations):
            codes, best = _assign(placed, place(centroids, device))
            sums, counts = map(as_array, ops.accumulate(placed, codes, num_centroids))
            centroids, restarted = _means(points, as_array(best), sums, counts)
            logger.debug("k-means step %d: %d clusters restarted", step + 1, restarted)
            if on_iteration is not None:
                on_iteration()
    return centroids


def _means(
    points: npt.NDArray[Any],
    best: npt.NDArray[np.float32],
    sums: npt.NDArray[np.float32],
    counts: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.float32], int]:
    """The next centroids, and how many had to start anew."""
    dead = np.flatnonzero((counts == 0) | (np.linalg.norm(sums, axis=1) < _SMALLEST_NORM))
    if len(dead):
        sums[dead] = points[_worst_served(points, best, len(dead))]
    return _unit_rows(sums), len(dead)


def _assign(points: Any, centroids: Any) -> tuple[Any, Any]:
    if not isinstance(points, np.ndarray):
        return ops.assign(points, centroids)
    codes, best = np.empty(len(points), np.int32), np.empty(len(points), np.float32)
    for start in range(0, len(points), _BLOCK):
        block = slice(start, start + _BLOCK)
        codes[block], best[block] = ops.assign(points[block], centroids, exact=False)
    return codes, best


def _worst_served(
    points: npt.NDArray[Any], best: npt.NDArray[np.float32], wanted: int
) -> npt.NDArray[np.intp]:
    """Indices of `wanted` points, lowest score first, different vectors before repeated ones."""
    candidates = np.argsort(best, kind="stable")[: _SPARES * wanted]
    rows = np.ascontiguousarray(points[candidates])
    keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    _, first = np.unique(keys, return_index=True)
    repeated = np.setdiff1d(np.arange(len(candidates)), first)
    order = np.concatenate([np.sort(first), repeated])[:wanted]
    chosen: npt.NDArray[np.intp] = candidates[order]
    return chosen


def _unit_rows(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows
