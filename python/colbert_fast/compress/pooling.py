"""Token pooling: fewer rows per document, by merging the rows that are alike."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from colbert_fast.kernels import ops

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
        For embeddings that are not two-dimensional or not finite, or a factor or protected out of
        range.
    """
    rows = np.ascontiguousarray(embeddings, dtype=np.float32)
    if rows.ndim != 2:
        raise ValueError(f"embeddings: want shape (tokens, dim), got {rows.shape}")
    pooled, _ = ops.pool(rows, np.array([len(rows)], np.int32), factor, protected=protected)
    return cast(npt.NDArray[np.float32], pooled)
