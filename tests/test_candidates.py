"""Centroid scores, probing, inverted lists, approximate scores and top-k against the reference."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_fast.kernels import ops, reference
from support import (
    DOCLENS,
    LANES,
    PAIRS,
    any_threads,
    every_isa,
    same_bits,
    unit_vectors,
    use_threads,
)
from tolerances import assert_close


@every_isa
@pytest.mark.parametrize(("nq", "dim"), PAIRS)
def test_centroid_scores(nq: int, dim: int, rng: np.random.Generator) -> None:
    for num_centroids in (1, 17, 129):
        query, centroids = unit_vectors(rng, nq, dim), unit_vectors(rng, num_centroids, dim)
        ours = ops.centroid_scores(query, centroids)
        truth = reference.centroid_scores(query, centroids)
        assert_close(ours, truth, centroids @ query.T, "dot")


@every_isa
@pytest.mark.parametrize("nq", LANES)
def test_top_centroids(nq: int, rng: np.random.Generator) -> None:
    for num_centroids, nprobe in ((1, 1), (9, 9), (300, 1), (300, 7), (300, 64)):
        scores = rng.standard_normal((num_centroids, nq)).astype(np.float32)
        scores[: num_centroids // 2] = np.round(scores[: num_centroids // 2])  # many ties
        assert same_bits(ops.top_centroids(scores, nprobe), reference.top_centroids(scores, nprobe))


@every_isa
@pytest.mark.parametrize("nprobe", [3, 65])
def test_top_centroids_of_infinite_scores_and_nan(nprobe: int) -> None:
    scores = np.full((100, 2), -np.inf, np.float32)
    scores[[7, 50], 0] = 1, 2
    scores[90, 1] = np.nan
    found = ops.top_centroids(scores, nprobe)
    assert found[:, :3].tolist() == [[50, 7, 0], [0, 1, 2]]
    assert [len(set(row)) for row in found.tolist()] == [nprobe] * 2


@every_isa
def test_top_centroids_of_equal_scores_are_the_lowest() -> None:
    found = ops.top_centroids(np.zeros((100, 3), np.float32), 5)
    assert found.tolist() == [[0, 1, 2, 3, 4]] * 3


@pytest.mark.parametrize("code_type", [np.int32, np.uint16])
@pytest.mark.parametrize("num_centroids", [1, 2, 33, 1000])
def test_lists(num_centroids: int, code_type: Any, rng: np.random.Generator) -> None:
    codes = rng.integers(0, num_centroids, DOCLENS.sum()).astype(code_type)
    lists = ops.build_lists(codes, DOCLENS, num_centroids)
    truth = reference.build_lists(codes, DOCLENS, num_centroids)
    assert same_bits(tuple(lists), tuple(truth))
    for cell in range(num_centroids):
        assert same_bits(ops.read_list(lists, cell), reference.read_list(truth, cell))


@st.composite
def collections(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Codes, doclens and the number of centroids of an arbitrary small collection."""
    num_centroids = draw(st.integers(1, 12))
    # Runs of empty documents make gaps of every width.
    lengths = draw(st.lists(st.sampled_from([0, 0, 0, 1, 2, 5]), max_size=300))
    doclens = np.array(lengths, np.int32)
    seed = draw(st.integers(0, 2**32 - 1))
    codes = np.random.default_rng(seed).integers(0, num_centroids, doclens.sum())
    return codes.astype(np.int32), doclens, num_centroids


@settings(deadline=None, max_examples=50)
@given(collections())
def test_lists_round_trip(collection: tuple[np.ndarray, np.ndarray, int]) -> None:
    codes, doclens, num_centroids = collection
    lists = ops.build_lists(codes, doclens, num_centroids)
    owner = np.repeat(np.arange(len(doclens)), doclens)
    for cell in range(num_centroids):
        expected = np.unique(owner[codes == cell]).astype(np.int32)
        assert same_bits(ops.read_list(lists, cell), expected)
        assert lists.counts[cell] == len(expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("max_bytes", [1, 30, 200, 1 << 20])
def test_neither_threads_nor_blocks_show_in_lists(
    max_bytes: int, threads: int, rng: np.random.Generator
) -> None:
    doclens = rng.integers(0, 9, 500).astype(np.int32)
    doclens[7] = 5000  # more than are unpacked at once
    codes = (rng.integers(0, 13, doclens.sum()) ** 2 // 12).astype(np.int32)
    whole = tuple(reference.build_lists(codes, doclens, 14))
    packed = ops.pack_codes(codes, 5)
    *truth, true_blocks = reference.stream_lists(packed, 5, doclens, 14, max_bytes=max_bytes)
    with use_threads(threads):
        assert same_bits(tuple(ops.build_lists(codes, doclens, 14)), whole)
        *ours, blocks = ops.stream_lists(packed, 5, doclens, 14, max_bytes=max_bytes)
        assert same_bits((*ours, *blocks), (*truth, *true_blocks))


def test_codes_that_change_between_passes_are_noticed() -> None:
    doclens = np.ones(100, np.int32)
    packed = ops.pack_codes(np.arange(100, dtype=np.int32) % 4, 3)
    _, _, blocks = ops.stream_lists(packed, 3, doclens, 4)
    packed[:37] = 0
    with pytest.raises(ValueError, match="codes"):
        next(blocks)


MEMORY = """
import resource, sys
import numpy as np
from colbert_fast import set_num_threads
from colbert_fast.kernels import ops

set_num_threads(2)
packed = np.load(sys.argv[1], mmap_mode="r")
doclens = np.full(60_000, 100, np.int32)
ops.stream_lists(packed[: 200 + ops.CODE_PADDING], 8, doclens[:2], 200)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_, offsets, blocks = ops.stream_lists(packed, 8, doclens, 200, max_bytes=100_000)
assert sum(map(len, blocks)) == offsets[-1] > 2_500_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts peak memory as Linux does")
def test_memory_for_lists_does_not_grow_with_tokens(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    codes = rng.integers(0, 200, 6_000_000).astype(np.int32)
    np.save(tmp_path / "codes.npy", ops.pack_codes(codes, 8))
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "codes.npy"],
        check=True,
        capture_output=True,
        text=True,
    )
    # The mapped codes count once they are read, 6 MB; plain ids would take 19 MB more.
    assert int(done.stdout) < 6_000_000 + 5_000_000


def test_wide_gaps() -> None:
    for n_docs in (2**8, 2**16 + 1, 2**21):
        doclens = np.zeros(n_docs, np.int32)
        doclens[[0, n_docs // 2, n_docs - 1]] = 1
        lists = ops.build_lists(np.zeros(3, np.int32), doclens, 1)
        assert ops.read_list(lists, 0).tolist() == [0, n_docs // 2, n_docs - 1]


@any_threads
@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_gather_documents(count: int, rng: np.random.Generator) -> None:
    codes = rng.integers(0, 33, DOCLENS.sum()).astype(np.int32)
    lists = ops.build_lists(codes, DOCLENS, 33)
    cells = rng.integers(0, 33, count).astype(np.int32)  # 40 of 33: with repeats
    found = ops.gather_documents(lists, cells, len(DOCLENS))
    assert same_bits(found, reference.gather_documents(lists, cells, len(DOCLENS)))


@every_isa
@pytest.mark.parametrize("code_type", [np.int32, np.uint16])
@pytest.mark.parametrize("threshold", [None, 0.3, 9.0])
@pytest.mark.parametrize("nq", LANES)
def test_approximate_maxsim(
    nq: int, threshold: float | None, code_type: Any, rng: np.random.Generator
) -> None:
    scores = rng.uniform(-1, 0.5, (33, nq)).astype(np.float32)
    codes = rng.integers(0, 33, DOCLENS.sum()).astype(code_type)
    candidates = rng.permutation(len(DOCLENS)).astype(np.int32)[:-3]
    arguments = (scores, codes, DOCLENS, candidates)
    ours = ops.approximate_maxsim(*arguments, threshold=threshold)
    truth = reference.approximate_maxsim(*arguments, threshold=threshold)
    pruned = truth <= -9999
    assert np.array_equal(ours[pruned], truth[pruned])
    if not pruned.all():
        ours, truth = ours[~pruned], truth[~pruned]
        assert_close(ours, truth, truth, "approximate_maxsim", terms=nq)


@every_isa
def test_threshold_is_inclusive() -> None:
    scores = np.array([[0.45, 0.1], [0.449, 0.2]], np.float32)
    codes, doclens = np.array([0, 1], np.int32), np.array([1, 1], np.int32)
    candidates = np.array([0, 1], np.int32)
    found = ops.approximate_maxsim(scores, codes, doclens, candidates, threshold=0.45)
    np.testing.assert_allclose(found, [0.55, -2 * 9999], rtol=1e-6)


@pytest.mark.parametrize("n", [0, *LANES, 5000])
def test_top_k(n: int, rng: np.random.Generator) -> None:
    scores = rng.standard_normal(n).astype(np.float32)
    scores[: n // 2] = np.round(scores[: n // 2])
    scores[: n // 5] = -np.inf
    for k in (1, 10, n, n + 3):
        if k:
            assert same_bits(ops.top_k(scores, k), reference.top_k(scores, k))


LISTS = reference.build_lists(np.array([0, 1, 1], np.int32), np.array([1, 2], np.int32), 2)
SCORES = np.ones((2, 3), np.float32)
TWO = np.array([1, 2], np.int32)
PACKED = ops.pack_codes(np.array([0, 1, 1], np.int32), 1)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: ops.top_centroids(SCORES, 0), "nprobe"),
        (lambda: ops.top_centroids(SCORES, 3), "nprobe"),
        (lambda: ops.build_lists(np.array([0, 1, 2], np.int32), TWO, 2), "codes"),
        (lambda: ops.build_lists(np.array([0, 1, -1], np.int32), TWO, 2), "codes"),
        (lambda: ops.build_lists(np.array([0, 1], np.int32), TWO, 2), "doclens"),
        (lambda: ops.stream_lists(PACKED, 1, TWO, 2, max_bytes=0), "max_bytes"),
        (lambda: ops.stream_lists(PACKED, 0, TWO, 2), "bits"),
        (lambda: ops.stream_lists(PACKED, 1, TWO, 0), "num_centroids"),
        (lambda: ops.stream_lists(PACKED[1:], 1, TWO, 2), "codes"),
        (lambda: ops.stream_lists(PACKED, 1, TWO, 1), "codes"),
        (lambda: ops.read_list(LISTS, 2), "centroid|cells"),
        (lambda: ops.read_list(LISTS, -1), "centroid|cells"),
        (lambda: ops.gather_documents(LISTS, np.array([0, 2], np.int32), 2), "cells"),
        (lambda: ops.gather_documents(LISTS, np.array([0, 1], np.int32), 1), "list"),
        (lambda: ops.approximate_maxsim(SCORES, np.full(3, 2, np.int32), TWO, TWO - 1), "codes"),
        (lambda: ops.approximate_maxsim(SCORES, np.zeros(3, np.int32), TWO, TWO), "candidates"),
        (lambda: ops.approximate_maxsim(SCORES, np.zeros(3, np.int32), TWO, TWO - 2), "candidates"),
        (lambda: ops.approximate_maxsim(SCORES, np.zeros(4, np.int32), TWO, TWO - 1), "doclens"),
        (lambda: ops.top_k(SCORES[0], -1), "k"),
        (
            lambda: ops.centroid_scores(SCORES[:, :2], np.ones((4, 8), np.float32)),
            "query|centroids",
        ),
    ],
)
def test_mistakes_are_named(call: Any, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        call()


@pytest.mark.parametrize("damage", ["counts", "offsets", "data"])
def test_damaged_lists_do_not_crash(damage: str) -> None:
    # As read from a damaged file: an error, never an access outside the data.
    codes = np.arange(40, dtype=np.int32) % 4
    lists = ops.build_lists(codes, np.ones(40, np.int32), 4)
    broken = {
        "counts": lists._replace(counts=np.full(4, 2**30, np.int32)),
        "offsets": lists._replace(offsets=np.full(5, 2**40, np.int64)),
        "data": lists._replace(data=np.full(len(lists.data), 255, np.uint8)),
    }[damage]
    with pytest.raises(ValueError, match=r"list|offsets"):
        ops.read_list(broken, 1)
    with pytest.raises(ValueError, match=r"list|offsets"):
        ops.gather_documents(broken, np.array([0, 1], np.int32), 40)


def test_many_probes_are_sorted_like_few(rng: np.random.Generator) -> None:
    scores = np.round(rng.standard_normal((300, 19)), 1).astype(np.float32)  # with ties
    expected = np.argsort(-scores, axis=0, kind="stable").T
    for nprobe in (64, 65, 299, 300):
        np.testing.assert_array_equal(ops.top_centroids(scores, nprobe), expected[:, :nprobe])


def test_nan_ranks_last() -> None:
    values, indices = ops.top_k(np.array([1, np.nan, 3, -np.inf, 2], np.float32), 5)
    assert indices.tolist() == [2, 4, 0, 1, 3]
    assert values[:3].tolist() == [3, 2, 1]


def test_queries_without_tokens_are_refused() -> None:
    empty = np.zeros((4, 0), np.float32)
    one = np.array([0], np.int32)
    with pytest.raises(ValueError, match="scores"):
        ops.approximate_maxsim(empty, one, np.array([1], np.int32), one, threshold=0.5)
