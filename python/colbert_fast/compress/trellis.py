"""Weights of the trellis that codes residuals: what each window of bits stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from colbert_fast.compress.levels import lloyd_max
from colbert_fast.kernels import ops

__all__ = ["fit_trellis"]

_STEPS = 8  # past these the error falls by less than a thousandth a step
_LEVELS = 127  # steps from the least weight to the greatest that the int8 kernel can count

# For normal values, by window; the best of 24 random starts of the iteration below, 25 steps each.
# Relative squared errors .309, .094 and .0294, where the best scalar levels (Max 1960) have .363,
# .1175 and .0345.
_NORMAL = {
    1: """.689 -.644 .479 -1.077 1.719 .064 -.703 .717
          -.456 1.170 -1.001 .488 -.024 -1.628 .774 -.564""",
    2: """1.357 -1.538 .092 -.736 -.396 .465 -2.108 1.314
          -1.114 2.142 .896 -.099 .398 -.364 -1.000 .588""",
    3: """.378 1.813 -1.369 2.567 -.010 -.466 -.834 -1.050
          -.453 1.089 .837 .015 -2.475 -1.785 1.419 .542""",
}


def fit_trellis(residuals: npt.NDArray[np.float32], nbits: int) -> npt.NDArray[np.float32]:
    """Weights of least squared error for residuals that carry a scale each.

    Alternates between the best row of bits for every residual (`ops.compress_trellis`) and the
    best weight for every window: Lloyd's iteration with the trellis in place of the nearest level.
    The result is rounded to 127 steps from the least to the greatest weight (not with 8 bits), so
    that the int8 kernel computes with the very same weights.

    Parameters
    ----------
    residuals : float32 (n, dim)
        Vectors minus their centroids.
    nbits : 1, 2, 3, 4 or 8

    Returns
    -------
    float32 (16,) by window for `nbits` 1 to 3, else (2 ** nbits,) by bucket, ascending.
    """
    dim = residuals.shape[1]
    origin = np.zeros((1, dim), np.float32)
    lengths = np.linalg.norm(residuals, axis=1, keepdims=True)
    units = (residuals / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    weights: npt.NDArray[np.float32]
    if nbits in _NORMAL:
        weights = np.array(_NORMAL[nbits].split(), np.float32) / np.float32(np.sqrt(dim))
    else:
        weights = lloyd_max(np.sort(units, axis=None), 1 << nbits)[1]
    for _ in range(_STEPS if nbits < 8 else 0):
        _, rows, scales = ops.compress_trellis(units, origin, weights, nbits)
        weights = _best_weights(units, _windows(rows, nbits), _decoded(scales), weights)
    if nbits == 8:
        return weights
    low = weights.min()
    step = (weights.max() - low) / np.float32(_LEVELS)
    if step == 0:
        return weights
    rounded: npt.NDArray[np.float32] = low + step * np.rint((weights - low) / step)
    return rounded


def _decoded(scales: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The numbers that the bytes of `ops.compress_trellis` stand for."""
    return np.where(scales == 0, 0.0, np.exp2((scales - 192.0) / 32.0))


def _windows(rows: npt.NDArray[np.uint8], nbits: int) -> npt.NDArray[Any]:
    """What each dimension is looked up by: its bits as they lie in the row, below what precedes."""
    buckets: npt.NDArray[Any] = ops.unpack_residuals(rows, nbits).astype(np.intp)
    if nbits >= 4:
        return buckets
    low = min(nbits, 2)
    own = buckets & 1 if low == 1 else (buckets & 1) << 1 | buckets >> 1 & 1
    stream = np.pad(own, ((0, 0), (3, 0)))
    before = stream[:, 2:-1]
    if nbits == 1:
        return own | before << 1 | stream[:, 1:-2] << 2 | stream[:, :-3] << 3
    if nbits == 2:
        return own | before << 2
    return own | (before & 1) << 2 | buckets >> 2 << 3


def _best_weights(
    units: npt.NDArray[np.float32],
    windows: npt.NDArray[Any],
    scales: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """Least squares: minimise the sum of (x - scale * weight[window]) ** 2. Unused ones stay."""
    scale = np.repeat(scales, units.shape[1])
    which, n = windows.ravel(), len(weights)
    sums = np.bincount(which, weights=units.ravel() * scale, minlength=n)
    squares = np.bincount(which, weights=scale * scale, minlength=n)
    return np.divide(sums, squares, out=weights.astype(np.float64), where=squares > 0).astype(
        np.float32
    )
