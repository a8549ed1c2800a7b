"""Token pooling against a plain computation."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_fast.compress.pooling import pool_tokens
from colbert_fast.errors import MissingDependencyError


def unit_rows(n: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def plain_ward(rows: np.ndarray, clusters: int) -> list[np.ndarray]:
    """Agglomerate by Ward's update on cosine distances, straight from its definition."""
    groups = [[i] for i in range(len(rows))]
    distance = 1.0 - rows.astype(np.float64) @ rows.T.astype(np.float64)
    np.fill_diagonal(distance, np.inf)
    while len(groups) > clusters:
        i, j = np.unravel_index(np.argmin(distance), distance.shape)
        sizes = np.array([len(group) for group in groups], float)
        total = sizes[i] + sizes[j] + sizes
        merged = (sizes[i] + sizes) * distance[i] ** 2 + (sizes[j] + sizes) * distance[j] ** 2
        merged = np.sqrt((merged - sizes * distance[i, j] ** 2) / total)
        merged[i] = np.inf
        distance[i] = distance[:, i] = merged
        groups[i] += groups[j]
        groups = groups[:j] + groups[j + 1 :]
        distance = np.delete(np.delete(distance, j, 0), j, 1)
    return [rows[sorted(group)].mean(axis=0) for group in groups]


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_agrees_with_plain_ward(factor: int) -> None:
    rows = unit_rows(31)
    pooled = pool_tokens(rows, factor)
    expected = np.stack(plain_ward(rows[1:], 30 // factor))
    np.testing.assert_array_equal(pooled[0], rows[0])
    order = np.lexsort(pooled[1:].T), np.lexsort(expected.T)
    np.testing.assert_allclose(pooled[1:][order[0]], expected[order[1]], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 40), factor=st.integers(1, 6), protected=st.integers(0, 3))
def test_number_of_rows_and_their_mean(n: int, factor: int, protected: int) -> None:
    rows = unit_rows(n, seed=n)
    pooled = pool_tokens(rows, factor, protected=protected)
    free = max(n - protected, 0)
    assert len(pooled) == (n - free) + (min(max(free // factor, 1), free))
    assert pooled.dtype == np.float32
    np.testing.assert_array_equal(pooled[:protected], rows[:protected])


def test_factor_one_is_the_identity() -> None:
    rows = unit_rows(9)
    np.testing.assert_array_equal(pool_tokens(rows, 1), rows)


def test_equal_rows_fall_together_in_order_of_first_appearance() -> None:
    a, b, c = unit_rows(3)
    pooled = pool_tokens(np.stack([c, b, a, b, a, b, a]), 3)
    np.testing.assert_allclose(pooled, [c, b, a], atol=1e-6)


def test_means_are_not_renormalised() -> None:
    pooled = pool_tokens(unit_rows(21), 10)
    assert np.linalg.norm(pooled[1]) < 0.9


def test_one_cluster_is_the_least() -> None:
    assert len(pool_tokens(unit_rows(4), 100)) == 2


@pytest.mark.parametrize(
    ("shape", "factor", "protected", "message"),
    [
        ((3,), 2, 1, "embeddings: want shape"),
        ((3, 8), 0, 1, "factor"),
        ((3, 8), 2, -1, "protected"),
    ],
)
def test_bad_arguments(shape: tuple[int, ...], factor: int, protected: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pool_tokens(np.zeros(shape, np.float32), factor, protected=protected)


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.cluster.hierarchy", None)
    with pytest.raises(MissingDependencyError, match=r"colbert-fast\[encode\]"):
        pool_tokens(unit_rows(9), 2)
