"""Token pooling: fewer rows per document, by merging the rows that are alike."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from colbert_fast.errors import MissingDependencyError

__all__ = ["pool_tokens"]


def pool_tokens(
    embeddings: npt.NDArray[np.floating], factor: int, *, protected: int = 1
) -> npt.NDArray[np.float32]:
    """Merge a document's rows into about `1 / factor` of them.

    Ward clustering on cosine distances into `(n - protected) // factor` clusters, each replaced by
    the mean of its rows ("Reducing the Footprint of Multi-Vector Retrieval with Minimal Performance
    Impact via Token Pooling", arXiv 2409.14683, section 2). As in PyLate, the condensed cosine
    distances are what is clustered, and means are **not** renormalised.

    Parameters
    ----------
    embeddings : ndarray of float, (n, dim)
        Unit rows of one document.
    factor : int
        1 returns the rows as they are.
    protected : int
        Leading rows that are kept as they are ([CLS] comes first).

    Returns
    -------
    ndarray of float32, (m, dim)
        The protected rows, then the means in the order of each cluster's first row.

    Raises
    ------
    ValueError
        For an embedding that is not two-dimensional, or a factor or protected out of range.
    MissingDependencyError
        If factor is above 1 and scipy is not installed.
    """
    rows = np.asarray(embeddings, dtype=np.float32)
    if rows.ndim != 2:
        raise ValueError(f"embeddings: want shape (tokens, dim), got {rows.shape}")
    if factor < 1:
        raise ValueError(f"factor: want at least 1, got {factor}")
    if protected < 0:
        raise ValueError(f"protected: want at least 0, got {protected}")
    free = rows[protected:]
    clusters = max(len(free) // factor, 1)
    if clusters >= len(free):
        return rows
    labels = _ward_labels(free, clusters)
    sums = np.zeros((int(labels.max()) + 1, rows.shape[1]), dtype=np.float32)
    np.add.at(sums, labels, free)
    means = sums / np.bincount(labels)[:, None].astype(np.float32)
    return np.concatenate([rows[:protected], means])


def _ward_labels(rows: npt.NDArray[np.float32], clusters: int) -> npt.NDArray[np.intp]:
    """Cluster of each row, numbered from 0 by first appearance; at most `clusters` of them."""
    try:
        from scipy.cluster.hierarchy import fcluster, linkage
    except ImportError as error:
        raise MissingDependencyError(
            'token pooling needs scipy: pip install "colbert-fast[encode]"'
        ) from error
    upper = np.triu_indices(len(rows), k=1)
    # Rounding can make the distance of equal rows negative, which linkage refuses.
    distances = np.maximum(1.0 - (rows @ rows.T)[upper].astype(np.float64), 0.0)
    found = fcluster(linkage(distances, method="ward"), t=clusters, criterion="maxclust")
    _, first, labels = np.unique(found, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.intp)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[labels]
