"""How far a float kernel may be from the float64 reference: the one place that says so.

The error model: a kernel may err by twice what the plain float32 computation in numpy errs on the
same input, plus a floor for the cases in which that happens to be lucky. float16 and bfloat16
inputs are widened to float32 exactly, so they have the bounds of float32. Floors are for unit
vectors, in float32 epsilons (2**-23): a dot product of unit vectors errs by a few epsilons, and a
MaxSim score sums ``nq`` of them. Integers, bits and choices (codes, argmax, top-k) have no
tolerance; where two choices are closer than the error of the scores that they are made by, either
is right.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np

from colbert_fast.kernels import reference, reference_residual

EPSILON = float(np.finfo(np.float32).eps)

FLOOR = {
    "dot": 4 * EPSILON,  # centroid_scores, assign
    "maxsim": 2 * EPSILON,  # per query token
    "decompress": 4 * EPSILON,
    "residual_maxsim": 2 * EPSILON,  # per query token
    "approximate_maxsim": 1 * EPSILON,  # per query token: sums only
    "gradient": 4 * EPSILON,
}

PUBLISHED = 1e-5
"""What the float32 path promises for decompressed vectors and for scores of 32 query tokens."""

INT8_PER_QUERY_TOKEN = 2e-5
"""Difference from the int8 specification: float32 instead of float64 around the same integers."""

MMA_PER_QUERY_TOKEN = 32 * EPSILON
"""Of a product of unit vectors by tensor cores, whose sums drop what lies below 24 bits."""

INT8_TIE = 1e-4
"""Centroid scores this near to the edge between two bytes (in bytes) may take either."""


def assert_close(
    ours: np.ndarray, truth: np.ndarray, plain: np.ndarray, op: str, *, terms: int = 1
) -> None:
    """Fail if ``ours`` errs by more than twice what ``plain`` does plus ``terms`` floors of ``op``.

    Entries that are infinite in ``truth`` must be equal.
    """
    assert ours.shape == truth.shape
    assert ours.dtype == np.float32
    finite = np.isfinite(truth)
    np.testing.assert_array_equal(ours[~finite], truth[~finite])
    if not finite.any():
        return
    error = np.abs(ours[finite] - truth[finite].astype(np.float64)).max()
    plain_error = np.abs(plain[finite] - truth[finite].astype(np.float64)).max()
    bound = 2 * plain_error + terms * FLOOR[op]
    assert error <= bound, f"{op}: error {error:.3g} > {bound:.3g} (plain: {plain_error:.3g})"


def assert_best(chosen: np.ndarray, scores: np.ndarray, *, tolerance: float | None = None) -> None:
    """Fail if ``chosen`` (n,) is not the argmax of ``scores`` (n, m), up to errors of rounding."""
    tolerance = FLOOR["dot"] if tolerance is None else tolerance
    lost = scores.max(axis=1) - np.take_along_axis(scores, chosen[:, None].astype(int), 1)[:, 0]
    assert (chosen >= 0).all()
    assert lost.max(initial=0) <= tolerance, f"a choice is {lost.max():.3g} below the best"
    disputed = (chosen != scores.argmax(axis=1)).mean() if len(chosen) else 0.0
    assert disputed <= 0.01, f"{disputed:.1%} of the choices differ from float64's"


def assert_int8(ours: np.ndarray, query: np.ndarray, *arguments: Any, **options: Any) -> None:
    """Fail if int8 scores (n_docs,) are not those of ``reference.residual_maxsim``.

    The reference is asked three times, with its bytes rounded at, just below and just above the
    middle: ours must be one of the three.
    """
    assert ours.dtype == np.float32
    truth = []
    for shift in (0.0, -INT8_TIE, INT8_TIE):
        with mock.patch.object(reference_residual, "TABLE_ZERO", reference.TABLE_ZERO + shift):
            truth.append(reference.residual_maxsim(query, *arguments, precision="int8", **options))
    finite = np.isfinite(truth[0])
    np.testing.assert_array_equal(ours[~finite], truth[0][~finite])
    error = np.abs(np.array(truth)[:, finite] - ours[finite]).min(axis=0)
    bound = INT8_PER_QUERY_TOKEN * max(len(query), float(np.linalg.norm(query, axis=1).sum()))
    assert error.max(initial=0) <= bound, f"error {error.max():.3g} > {bound:.3g}"
