"""The specification of token pooling; part of :mod:`colbert_fast.kernels.reference`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["pool"]

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]


def pool(
    embeddings: Array,
    doclens: Int32,
    factor: int,
    *,
    protected: int = 1,
    return_clusters: bool = False,
) -> tuple[Float32 | Int32, ...]:
    """Ward clustering of each document's rows (n, dim), all but the first ``protected``.

    Returns the protected rows and the means of the clusters, in the order of their first rows:
    float32 (m, dim), and doclens int32 (n_docs,); if asked for also the pooled row that each row
    is part of, counted within its document, int32 (n,).
    """
    pooled, clusters = [], []
    for rows in np.split(embeddings.astype(np.float64), np.cumsum(doclens)[:-1]):
        free = rows[protected:]
        groups = _ward(free, max(len(free) // factor, 1))
        means = [free[group].mean(axis=0) for group in groups]
        kept = len(rows) - len(free)
        into = np.arange(len(rows), dtype=np.int32)
        for number, group in enumerate(groups, kept):
            into[kept + np.array(group)] = number
        clusters.append(into)
        pooled.append(np.array([*rows[:protected], *means]).reshape(-1, rows.shape[1]))
    lengths = np.array([len(rows) for rows in pooled], np.int32)
    found = np.concatenate(pooled).astype(np.float32), lengths
    return (*found, np.concatenate(clusters)) if return_clusters else found


def _ward(rows: Array, clusters: int) -> list[list[int]]:
    """At most ``clusters`` groups of rows; merges as near as the last one are made too."""
    groups = [[row] for row in range(len(rows))]
    squares = np.maximum(1 - rows @ rows.T, 0) ** 2
    np.fill_diagonal(squares, np.inf)
    last = -np.inf
    while len(groups) > 1 and (len(groups) > clusters or squares.min() <= last):
        i, j = np.unravel_index(squares.argmin(), squares.shape)  # i < j
        last, sizes = squares[i, j], np.array([len(group) for group in groups])
        merged = (sizes[i] + sizes) * squares[i] + (sizes[j] + sizes) * squares[j] - sizes * last
        squares[i] = squares[:, i] = merged / (sizes[i] + sizes[j] + sizes)
        squares[i, i] = np.inf
        squares = np.delete(np.delete(squares, j, axis=0), j, axis=1)
        groups[i] = sorted(groups[i] + groups.pop(j))
    return groups
