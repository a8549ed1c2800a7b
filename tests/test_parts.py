"""An index in parts answers as one part does, bit by bit."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from colbert_fast.kernels import ops, reference
from colbert_fast.search.params import SearchParams
from colbert_fast.search.pipeline import Part, Searcher
from colbert_fast.storage.codes import code_bits
from support import (
    any_threads,
    every_isa,
    make_collection,
    make_trellis_collection,
    same_bits,
    unit_vectors,
)

Columns = dict[str, np.ndarray]
N_DOCS, K = 300, 40
OLD_DOCS, OLD_K = 120, 24
"""The first documents were compressed when there were fewer centroids."""

DOCLENS = np.random.default_rng(3).integers(0, 20, N_DOCS).astype(np.int32)
DOCLENS[[1, OLD_DOCS, OLD_DOCS + 1]] = 0
ENDS = np.concatenate([[0], np.cumsum(DOCLENS)])

BOUNDS = {
    "one": (0, N_DOCS),
    "two": (0, OLD_DOCS, N_DOCS),
    "five": (0, 1, 100, OLD_DOCS, 200, N_DOCS),
    "some empty": (0, 0, 1, 2, OLD_DOCS, OLD_DOCS + 2, OLD_DOCS + 2, N_DOCS, N_DOCS),
}
"""Where parts begin and end; some have no documents, some none with a token."""


def collection(codec: str) -> tuple[Any, np.ndarray | None, Columns, np.ndarray]:
    """Centroids, weights, columns and a query."""
    make = make_collection if codec == "plaid" else make_trellis_collection
    data = make(np.random.default_rng(5), nq=9, dim=32, num_centroids=K, doclens=DOCLENS)
    if codec == "float16":
        codes = data.codes.copy()
        codes[: ENDS[OLD_DOCS]] %= OLD_K
        columns = {"codes": codes, "embeddings": data.embeddings.astype(np.float16)}
        return data.centroids, None, columns, data.query
    scores = data.embeddings @ data.centroids.T
    scores[: ENDS[OLD_DOCS], OLD_K:] = -np.inf
    codes = scores.argmax(1).astype(np.int32)
    columns = {"codes": codes, "residuals": data.residuals}
    if data.scales is not None:
        columns["scales"] = data.scales
    columns["inverse_norms"] = reference.inverse_norms(
        codes, data.residuals, data.centroids, data.weights, scales=data.scales
    )
    return data.centroids, data.weights, columns, data.query


def part_of(columns: Columns, begin: int, end: int) -> Part:
    doclens = DOCLENS[begin:end]
    rows = {name: column[ENDS[begin] : ENDS[end]] for name, column in columns.items()}
    num_centroids = OLD_K if end <= OLD_DOCS else K
    lists = ops.build_lists(rows["codes"], doclens, num_centroids)
    rows["codes"] = ops.pack_codes(rows["codes"], code_bits(num_centroids))
    return Part(**rows, doclens=doclens, lists=lists)


def searcher_of(codec: str, bounds: Sequence[int]) -> Searcher:
    centroids, weights, columns, _ = COLLECTIONS[codec]
    parts = [part_of(columns, begin, end) for begin, end in itertools.pairwise(bounds)]
    return Searcher(centroids=centroids, weights=weights, parts=parts)


COLLECTIONS = {codec: collection(codec) for codec in ("default", "plaid", "float16")}
SEARCHERS = {
    codec: {name: searcher_of(codec, bounds) for name, bounds in BOUNDS.items()}
    for codec in COLLECTIONS
}
QUERIES = [COLLECTIONS["plaid"][3], -COLLECTIONS["plaid"][3][:1], np.eye(33, 32, dtype=np.float32)]

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {"ndocs": 64, "nprobe": 6},
    "many probes": {"ndocs": 32, "nprobe": 100},
    "screened": {"ndocs": 10, "nprobe": 6},
    "ranked": {"ndocs": 180, "nprobe": 24},
    "scan": {"ndocs": 200},
    "plaid": {"mode": "plaid", "ndocs": 64, "nprobe": 2},
    "exhaustive": {"exhaustive": True},
}


@every_isa
@any_threads
@pytest.mark.parametrize("codec", COLLECTIONS)
@pytest.mark.parametrize("options", OPTIONS)
def test_parts_do_not_show(codec: str, options: str) -> None:
    params = SearchParams.resolve(10, **OPTIONS[options])
    masks = [None, np.arange(N_DOCS) % 3 > 0, np.arange(N_DOCS) >= OLD_DOCS]
    for subset in masks:
        whole = SEARCHERS[codec]["one"].search(QUERIES, params, subset=subset)
        assert (whole[0] >= 0).all()
        for name, searcher in SEARCHERS[codec].items():
            found = searcher.search(QUERIES, params, subset=subset)
            assert same_bits(found, whole), name


@any_threads
def test_screening_many_documents_of_several_parts() -> None:
    """More than a thread screens at once. Where all cells are probed it loses nothing."""
    rng = np.random.default_rng(6)
    doclens = rng.integers(1, 4, 5000).astype(np.int32)
    ends = np.concatenate([[0], np.cumsum(doclens)])
    centroids = unit_vectors(rng, 50, 32)
    codes = rng.integers(50, size=ends[-1]).astype(np.int32)
    vectors = centroids[codes].astype(np.float16)
    parts = []
    for begin, end in ((0, 1700), (1700, 1700), (1700, 5000)):
        rows = codes[ends[begin] : ends[end]]
        parts.append(
            Part(
                codes=ops.pack_codes(rows, code_bits(50)),
                embeddings=vectors[ends[begin] : ends[end]],
                doclens=doclens[begin:end],
                lists=ops.build_lists(rows, doclens[begin:end], 50),
            )
        )
    searcher = Searcher(centroids=centroids, weights=None, parts=parts)
    params = SearchParams.resolve(10, nprobe=50, ndocs=100)
    # Fewer documents the second time: what is kept of the first is then out of date.
    for mask in (None, np.arange(5000) % 4 > 0):
        for query in (unit_vectors(rng, 5, 32), unit_vectors(rng, 2, 32)):
            found = searcher.search([query], params, subset=mask)
            exact = searcher.search([query], params._replace(exhaustive=True), subset=mask)
            assert same_bits(found, exact)


@every_isa
@any_threads
@pytest.mark.parametrize("codec", COLLECTIONS)
@pytest.mark.parametrize("options", ["default", "plaid", "exhaustive"])
def test_candidates_are_what_a_mask_lets_pass(codec: str, options: str) -> None:
    searcher = SEARCHERS[codec]["some empty"]
    params = SearchParams.resolve(10, **OPTIONS[options])
    # The mask's documents are few enough for mode "default" to scan them.
    like = params._replace(mode="default", ndocs=N_DOCS)
    rng = np.random.default_rng(2)
    lists = [rng.integers(N_DOCS, size=size) for size in (50, 0, 200)]  # some come twice
    subset = np.arange(N_DOCS) % 3 > 0
    found = searcher.search(QUERIES, params, subset=subset, candidates=lists)
    for row, (query, given) in enumerate(zip(QUERIES, lists, strict=True)):
        mask = subset & np.isin(np.arange(N_DOCS), given)
        expected = searcher.search([query], like, subset=mask)
        assert same_bits((found[0][row], found[1][row]), (expected[0][0], expected[1][0]))


@pytest.mark.parametrize(
    ("documents", "starts", "message"),
    [
        ([0, N_DOCS], [0, 1, 2], r"`candidates` must lie in \[0, 300\), got 300"),
        ([-1], [0, 1, 1], r"`candidates` must lie in \[0, 300\), got -1"),
        ([1], [0, 1, 2], r"`candidate starts` must rise from 0 to the number of candidates"),
        ([1, 2], [0, 3, 2], r"`candidate starts` must rise"),
        ([1], [0, 1], r"`candidate starts`"),
    ],
)
def test_candidates_that_are_refused(documents: list[int], starts: list[int], message: str) -> None:
    ids, scores = np.empty((2, 3), np.int64), np.empty((2, 3), np.float32)
    with pytest.raises((ValueError, TypeError), match=message):
        SEARCHERS["default"]["five"]._core.search(
            np.eye(2, 32, dtype=np.float32),
            np.arange(3),
            nprobe=1,
            ndocs=1,
            plaid=False,
            threshold=0.0,
            exhaustive=False,
            subset=None,
            candidates=(np.array(documents), np.array(starts)),
            ids=ids,
            scores=scores,
        )


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("codec", COLLECTIONS)
def test_no_documents_no_hits(codec: str, options: str) -> None:
    params = SearchParams.resolve(10, **OPTIONS[options])
    nothing = Searcher(centroids=COLLECTIONS[codec][0], weights=COLLECTIONS[codec][1], parts=[])
    for searcher, mask in (
        (SEARCHERS[codec]["five"], np.zeros(N_DOCS, bool)),
        (SEARCHERS[codec]["five"], np.arange(N_DOCS) == OLD_DOCS),  # it has no tokens
        (searcher_of(codec, (0, 0)), None),
        (nothing, None),
    ):
        ids, scores = searcher.search(QUERIES, params, subset=mask)
        assert (ids == -1).all()
        assert (scores == -np.inf).all()


def five_parts() -> list[Part]:
    bounds = BOUNDS["five"]
    columns = COLLECTIONS["default"][2]
    return [part_of(columns, *span) for span in itertools.pairwise(bounds)]


@pytest.mark.parametrize(
    ("column", "change", "error", "message"),
    [
        ("codes", lambda rows: rows.astype(np.int64), TypeError, r"parts\[3\]\.codes`"),
        ("codes", lambda rows: rows[:-1], ValueError, r"parts\[3\]\.codes`"),
        ("doclens", lambda rows: -rows, ValueError, r"parts\[3\]\.doclens` must not be negative"),
        ("doclens", lambda rows: rows + 1, ValueError, r"parts\[3\]\.doclens` must sum to"),
        ("scales", lambda rows: rows[1:], ValueError, r"parts\[3\]\.scales`"),
        ("residuals", lambda rows: rows[:, :5].copy(), ValueError, r"parts\[3\]\.residuals` must"),
        (
            "residuals",
            lambda rows: np.repeat(rows, 2, 1),
            ValueError,
            r"parts\[3\]\.residuals` must have 2 bits .* got 4",
        ),
        ("residuals", lambda _: None, ValueError, r"pass .*parts\[3\]\.embed"),
        (
            "lists",
            lambda lists: lists._replace(data=lists.data[1:]),
            ValueError,
            r"parts\[3\]\.offsets` must rise from 0 to the length of `parts\[3\]\.data`",
        ),
        (
            "lists",
            lambda _: ops.build_lists(np.zeros(1, np.int32), np.ones(1, np.int32), K + 1),
            ValueError,
            r"parts\[3\]\.counts` must be of at most the 40 centroids, got 41",
        ),
    ],
)
def test_the_part_of_a_mistake_is_named(
    column: str, change: Any, error: type[Exception], message: str
) -> None:
    centroids, weights, *_ = COLLECTIONS["default"]
    parts = five_parts()
    parts[3] = dataclasses.replace(parts[3], **{column: change(getattr(parts[3], column))})
    with pytest.raises(error, match=message):
        Searcher(centroids=centroids, weights=weights, parts=parts)


def test_the_part_of_damaged_lists_is_named() -> None:
    centroids, weights, *_ = COLLECTIONS["default"]
    parts = five_parts()
    damaged = parts[3].lists._replace(data=np.full_like(parts[3].lists.data, 255))
    parts[3] = dataclasses.replace(parts[3], lists=damaged)
    searcher = Searcher(centroids=centroids, weights=weights, parts=parts)
    with pytest.raises(RuntimeError, match=r"`parts\[3\]\.lists`: list \d+ is corrupt"):
        searcher.search(QUERIES, SearchParams.resolve(10, nprobe=10, ndocs=20))
