"""Scalar levels: where the buckets of a component end, and what they stand for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["lloyd_max", "quantile_levels"]

_LLOYD_STEPS = 200
_LLOYD_TOLERANCE = 1e-6  # of the values' range

Levels = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


def quantile_levels(values: npt.NDArray[np.float32], n: int) -> Levels:
    """Cutoffs (n - 1,) between, and weights (n,) in the middle of, n equally full buckets.

    `values` is sorted, which makes the quantiles look-ups.
    """
    at = np.quantile(values, np.arange(1, 2 * n) / (2 * n)).astype(np.float32)
    return at[1::2].copy(), at[0::2].copy()


def lloyd_max(values: npt.NDArray[np.float32], n: int) -> Levels:
    """Cutoffs (n - 1,) and weights (n,) of least squared error, for sorted `values`.

    Lloyd's iteration from the quantiles: a cutoff lies midway between its weights, a weight is the
    mean of its bucket (S. Lloyd, "Least squares quantization in PCM", 1982; J. Max, 1960).
    """
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    weights = quantile_levels(values, n)[1].astype(np.float64)
    for _ in range(_LLOYD_STEPS):
        cutoffs = (weights[1:] + weights[:-1]) / 2
        ends = np.searchsorted(values, cutoffs, side="right")
        edges = np.concatenate([[0], ends, [len(values)]])
        counts = np.diff(edges)
        # An empty bucket, of values that repeat, keeps its weight.
        means = np.divide(np.diff(sums[edges]), counts, out=weights.copy(), where=counts > 0)
        moved = np.abs(means - weights).max()
        weights = means
        if moved < _LLOYD_TOLERANCE * (values[-1] - values[0]):
            break
    cutoffs = (weights[1:] + weights[:-1]) / 2
    return cutoffs.astype(np.float32), weights.astype(np.float32)
