"""The query pipeline in C++ against its specification, ``reference.search``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from colbert_fast.kernels import ops, reference
from colbert_fast.search.params import SearchParams
from colbert_fast.search.pipeline import Searcher
from support import Collection, any_threads, every_isa, make_collection, same_bits, use_threads

SCORE_TOLERANCE = 1e-5
DOCLENS = np.random.default_rng(3).integers(0, 20, 300).astype(np.int32)
DATA = make_collection(
    np.random.default_rng(5), nq=9, dim=32, nbits=2, num_centroids=40, doclens=DOCLENS
)
QUERIES = [DATA.query, -DATA.query[:1], DATA.embeddings[40:57].copy()]
Arguments = dict[str, Any]


def arrays_of(data: Collection, codec: str) -> Arguments:
    """The arguments that ``Searcher`` and ``reference.search`` share."""
    common = {"centroids": data.centroids, "codes": data.codes, "doclens": data.doclens}
    if codec == "float16":
        return common | {"embeddings": data.embeddings.astype(np.float16)}
    return common | {"residuals": data.residuals, "weights": data.weights}


def make_searcher(data: Collection, codec: str) -> Searcher:
    nothing = dict.fromkeys(("residuals", "weights", "embeddings"))
    return Searcher(
        **nothing | arrays_of(data, codec),
        inverse_norms=None if codec == "float16" else data.inverse_norms,
        lists=ops.build_lists(data.codes, data.doclens, len(data.centroids)),
    )


SEARCHERS = {codec: make_searcher(DATA, codec) for codec in ("plaid", "float16")}


def assert_same_hits(ids: np.ndarray, scores: np.ndarray, truth: tuple[Any, Any]) -> None:
    """Ids may be in another order only where the true scores are equal up to rounding."""
    count = len(truth[0])
    assert (ids[count:] == -1).all()
    assert (scores[count:] == -np.inf).all()
    np.testing.assert_allclose(scores[:count], truth[1], rtol=0, atol=SCORE_TOLERANCE)
    for position in np.flatnonzero(ids[:count] != truth[0]):
        gaps = np.abs(truth[1] - truth[1][position])
        assert np.sort(gaps)[1] <= SCORE_TOLERANCE, f"hit {position}: another document"


@every_isa
@pytest.mark.parametrize("codec", SEARCHERS)
@pytest.mark.parametrize("k", [1, 10, 300])
def test_exhaustive_search(codec: str, k: int) -> None:
    params = SearchParams.resolve(k, exhaustive=True)
    found = SEARCHERS[codec].search(QUERIES, params)
    for query, *hits in zip(QUERIES, *found, strict=True):
        assert_same_hits(
            *hits, reference.search(query, exhaustive=True, k=k, **arrays_of(DATA, codec))
        )


PLAID: list[Arguments] = [
    {"k": 5, "nprobe": 1, "ndocs": 20, "centroid_score_threshold": 0.3},
    {"k": 10, "nprobe": 2, "ndocs": 64, "centroid_score_threshold": 0.45},
    {"k": 10, "nprobe": 2, "ndocs": 12, "centroid_score_threshold": 2.0},
    {"k": 3, "nprobe": 40, "ndocs": 100, "centroid_score_threshold": -1.0},
]


@every_isa
@pytest.mark.parametrize("codec", SEARCHERS)
@pytest.mark.parametrize("options", PLAID)
@pytest.mark.parametrize("with_subset", [False, True])
def test_plaid_stages(codec: str, options: Arguments, with_subset: bool) -> None:
    subset = np.arange(len(DOCLENS)) % 3 > 0 if with_subset else None
    params = SearchParams.resolve(mode="plaid", **options)
    found = SEARCHERS[codec].search(QUERIES, params, subset=subset)
    for query, *hits in zip(QUERIES, *found, strict=True):
        truth = reference.search(query, subset=subset, **options, **arrays_of(DATA, codec))
        assert_same_hits(*hits, truth)


@every_isa
@pytest.mark.parametrize("codec", SEARCHERS)
def test_default_mode_scores_are_exact_and_most_hits_are_found(codec: str) -> None:
    params = SearchParams.resolve(10, nprobe=8)
    ids, scores = SEARCHERS[codec].search(QUERIES, params)
    everything = SearchParams.resolve(len(DOCLENS), exhaustive=True)
    all_ids, all_scores = SEARCHERS[codec].search(QUERIES, everything)
    for row in range(len(QUERIES)):
        exact = dict(zip(all_ids[row].tolist(), all_scores[row].tolist(), strict=True))
        assert scores[row].tolist() == [exact[document] for document in ids[row].tolist()]
        assert len(set(ids[row]) & set(all_ids[row, :10])) >= 8


@any_threads
@pytest.mark.parametrize("mode", ["default", "plaid", "exhaustive"])
def test_same_bits_alone_in_a_batch_and_on_any_threads(mode: str) -> None:
    options: Arguments = {"exhaustive": True} if mode == "exhaustive" else {"mode": mode}
    params = SearchParams.resolve(10, **options)
    batch = SEARCHERS["plaid"].search(QUERIES, params)
    with use_threads(1):
        alone = [SEARCHERS["plaid"].search([query], params) for query in QUERIES]
    assert same_bits(batch, tuple(np.concatenate(rows) for rows in zip(*alone, strict=True)))


def test_a_subset_of_nothing_and_no_queries() -> None:
    params = SearchParams.resolve(4)
    nothing = np.zeros(len(DOCLENS), bool)
    ids, _ = SEARCHERS["plaid"].search(QUERIES, params, subset=nothing)
    assert (ids == -1).all()
    assert SEARCHERS["plaid"].search([], params)[0].shape == (0, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e38])
def test_queries_must_be_finite(value: float) -> None:
    query = DATA.query.copy()
    query[3, 5] = value
    with pytest.raises(ValueError, match="quer"):
        SEARCHERS["plaid"].search([query], SearchParams.resolve(4))


def test_queries_without_tokens_are_refused() -> None:
    params = SearchParams.resolve(3)
    with pytest.raises(ValueError, match="query 1 has no tokens"):
        SEARCHERS["plaid"].search([QUERIES[0], QUERIES[0][:0]], params)
