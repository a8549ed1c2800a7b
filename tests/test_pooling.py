"""Token pooling against scipy's Ward linkage and against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_fast.compress.pooling import pool_tokens
from colbert_fast.kernels import ops, reference
from support import (
    LANES,
    any_threads,
    every_isa,
    misaligned,
    noncontiguous,
    same_bits,
    unit_vectors,
    use_isa,
    use_threads,
)


def doclens_of(*lengths: int) -> np.ndarray:
    return np.array(lengths, np.int32)


def clustered(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    """Unit rows of which several are near one another, as the tokens of a text are."""
    topics = unit_vectors(rng, n // 4 + 1, dim)
    rows = topics[rng.integers(len(topics), size=n)] + 0.7 * unit_vectors(rng, n, dim)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def scipy_pool(rows: np.ndarray, factor: int, protected: int) -> np.ndarray:
    """One document by scipy's linkage and fcluster, as PyLate pools."""
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy", reason="scipy is the oracle")
    free = rows[protected:]
    clusters = max(len(free) // factor, 1)
    if clusters >= len(free):
        return rows
    upper = np.triu_indices(len(free), k=1)
    distances = np.maximum(1.0 - (free @ free.T)[upper].astype(np.float64), 0.0)
    tree = hierarchy.linkage(distances, method="ward")
    labels = hierarchy.fcluster(tree, t=clusters, criterion="maxclust")
    firsts = np.sort(np.unique(labels, return_index=True)[1])
    means = [free[labels == labels[first]].mean(axis=0, dtype=np.float64) for first in firsts]
    return np.concatenate([rows[:protected], np.array(means, np.float32)])


# ---- the clusters


@every_isa
@pytest.mark.parametrize("factor", [2, 3, 7])
@pytest.mark.parametrize("rows_of", [unit_vectors, clustered])
def test_agrees_with_scipy(rows_of: Any, factor: int, rng: np.random.Generator) -> None:
    lengths = doclens_of(*LANES, 300)
    rows = rows_of(rng, int(lengths.sum()), 48)
    for protected in (0, 1):
        pooled, doclens = ops.pool(rows, lengths, factor, protected=protected)
        for ours, given_rows in zip(
            np.split(pooled, np.cumsum(doclens)[:-1]),
            np.split(rows, np.cumsum(lengths)[:-1]),
            strict=True,
        ):
            expected = scipy_pool(given_rows, factor, protected)
            np.testing.assert_allclose(ours, expected, atol=1e-6)


@every_isa
@pytest.mark.parametrize("dim", [1, 8, 20, 128, 1030])
def test_agrees_with_the_reference(dim: int, rng: np.random.Generator) -> None:
    lengths = doclens_of(0, 1, 2, 33, 0, 17, 3, 0)
    # On a line there are two unit vectors: ties only.
    rows = clustered(rng, int(lengths.sum()), dim)
    for factor, protected in ((1, 0), (2, 1), (3, 0), (100, 2)):
        ours = ops.pool(rows, lengths, factor, protected=protected, return_clusters=True)
        expected = reference.pool(rows, lengths, factor, protected=protected, return_clusters=True)
        assert ours[1].dtype == np.int32
        np.testing.assert_array_equal(ours[1], expected[1])
        np.testing.assert_allclose(ours[0], expected[0], atol=1e-6)
        assert ours[2].dtype == np.int32
        np.testing.assert_array_equal(ours[2], expected[2])


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 40), factor=st.integers(1, 6), protected=st.integers(0, 3))
def test_number_of_rows(n: int, factor: int, protected: int) -> None:
    rows = unit_vectors(np.random.default_rng(n), n, 16)
    pooled = pool_tokens(rows, factor, protected=protected)
    free = max(n - protected, 0)
    assert len(pooled) == (n - free) + (min(max(free // factor, 1), free))
    assert pooled.dtype == np.float32
    np.testing.assert_array_equal(pooled[:protected], rows[:protected])


@every_isa
@any_threads
def test_the_same_bits_everywhere(rng: np.random.Generator) -> None:
    lengths = np.tile(doclens_of(*LANES, 0), 3)
    rows = clustered(rng, int(lengths.sum()), 24)
    ours = ops.pool(rows, lengths, 2)
    with use_isa("scalar"), use_threads(1):
        assert same_bits(ours, ops.pool(rows, lengths, 2))


# ---- ties


@every_isa
def test_equal_rows_fall_together_in_order_of_first_appearance(rng: np.random.Generator) -> None:
    a, b, c = unit_vectors(rng, 3, 16)
    pooled = pool_tokens(np.stack([c, b, a, b, a, b, a]), 3)
    np.testing.assert_allclose(pooled, [c, b, a], atol=1e-6)
    np.testing.assert_allclose(pool_tokens(np.stack([c] + [a] * 50), 2), [c, a], atol=1e-6)


@every_isa
def test_merges_that_are_equally_far_apart_are_made_together() -> None:
    rows = np.repeat(np.eye(8, dtype=np.float32)[:4], 4, axis=0)  # four rows, each four times
    for factor in (2, 3, 4):  # two of the rows alone would do
        np.testing.assert_array_equal(pool_tokens(rows, factor, protected=0), rows[::4])
        np.testing.assert_array_equal(
            pool_tokens(rows, factor, protected=0), scipy_pool(rows, factor, 0)
        )
    mean = rows.mean(axis=0, keepdims=True)
    np.testing.assert_array_equal(pool_tokens(rows, 5, protected=0), mean)


@every_isa
def test_documents_that_lose_more_rows_leave_no_gaps(rng: np.random.Generator) -> None:
    one = unit_vectors(rng, 1, 16)
    other = unit_vectors(rng, 9, 16)
    rows = np.concatenate([np.repeat(one, 12, axis=0), other, np.repeat(one, 12, axis=0), other])
    pooled, doclens = ops.pool(rows, doclens_of(12, 9, 12, 9), 2)
    assert doclens.tolist() == [2, 5, 2, 5]
    again, _ = ops.pool(other, doclens_of(9), 2)
    np.testing.assert_allclose(pooled, np.concatenate([one, one, again] * 2), atol=1e-6)


# ---- the rows


def test_factor_one_is_the_identity(rng: np.random.Generator) -> None:
    rows = unit_vectors(rng, 9, 16)
    np.testing.assert_array_equal(pool_tokens(rows, 1), rows)


def test_means_are_not_renormalised(rng: np.random.Generator) -> None:
    pooled = pool_tokens(unit_vectors(rng, 21, 16), 10)
    assert np.linalg.norm(pooled[1]) < 0.9


def test_one_cluster_is_the_least(rng: np.random.Generator) -> None:
    assert len(pool_tokens(unit_vectors(rng, 4, 16), 100)) == 2


@every_isa
@pytest.mark.parametrize("dim", [16, 20])
def test_half_precision(dim: int, rng: np.random.Generator) -> None:
    half, lengths = clustered(rng, 50, dim).astype(np.float16), doclens_of(20, 30)
    assert same_bits(ops.pool(half, lengths, 2), ops.pool(half.astype(np.float32), lengths, 2))


def test_tensors(rng: np.random.Generator) -> None:
    torch: Any = pytest.importorskip("torch", reason="tensors come from torch")
    rows, lengths = torch.from_numpy(clustered(rng, 30, 16)).bfloat16(), torch.tensor([10, 20])
    pooled, doclens = ops.pool(rows, lengths.int(), 3)
    assert isinstance(pooled, torch.Tensor)
    expected = ops.pool(rows.float().numpy(), doclens_of(10, 20), 3)
    assert same_bits((pooled.numpy(), doclens.numpy()), expected)


def test_any_array_of_floats_for_one_document(rng: np.random.Generator) -> None:
    rows = unit_vectors(rng, 9, 16)
    for same in (rows.astype(np.float64), noncontiguous(rows), rows[:, ::-1].copy()[:, ::-1]):
        np.testing.assert_array_equal(pool_tokens(same, 2), pool_tokens(rows, 2))


# ---- mistakes


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"embeddings": np.zeros(3, np.float32)}, ValueError, "`embeddings` must have 2"),
        ({"embeddings": np.zeros((3, 8))}, TypeError, "`embeddings`.*float64"),
        ({"embeddings": noncontiguous(np.zeros((3, 8), np.float32))}, ValueError, "C-contiguous"),
        ({"embeddings": misaligned(np.zeros((3, 8), np.float32))}, ValueError, "aligned"),
        ({"doclens": doclens_of(1, 1)}, ValueError, "`doclens` must sum to .*, 3, got 2"),
        ({"doclens": doclens_of(-1, 4)}, ValueError, "`doclens` must not be negative, got -1"),
        ({"doclens": np.array([3])}, TypeError, "`doclens` must be int32, got int64"),
        ({"factor": 0}, ValueError, "`factor` must be at least 1, got 0"),
        ({"factor": 1.5}, TypeError, "`factor` must be an int, got 1.5"),
        ({"protected": -1}, ValueError, "`protected` must be at least 0, got -1"),
        ({"protected": None}, TypeError, "`protected` must be an int, got None"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {
        "embeddings": np.zeros((3, 8), np.float32),
        "doclens": doclens_of(3),
        "factor": 2,
        "protected": 1,
    }
    with pytest.raises(error, match=message):
        ops.pool(**{**arguments, **change})


@every_isa
@any_threads
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_rows_without_distances_are_refused(bad: float, rng: np.random.Generator) -> None:
    rows = unit_vectors(rng, 60, 16)
    rows[45, 3] = bad
    with pytest.raises(ValueError, match=r"`embeddings` must be finite .* document 2 are not"):
        ops.pool(rows, doclens_of(20, 20, 20), 2)


def test_one_document_must_have_two_dimensions() -> None:
    with pytest.raises(ValueError, match="embeddings: want shape"):
        pool_tokens(np.zeros(3, np.float32), 2)
