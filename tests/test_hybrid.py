"""Filters, candidates and BM25 in searches of an index with several segments and deletions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colbert_fast.errors import UnknownDocumentError
from colbert_fast.index import Index
from colbert_fast.search.bm25 import best
from colbert_fast.search.hybrid import fuse
from fakes import WordModel
from synthetic import sentences

CODECS = ["default", "plaid", "float16"]


def documents(count: int) -> list[dict[str, Any]]:
    texts = sentences(np.random.default_rng(5), count)
    return [
        {"id": f"d{i}", "text": text, "year": 1990 + i % 30, "lang": ("de", "en", None)[i % 3]}
        for i, text in enumerate(texts)
    ]


DOCUMENTS = documents(200)
LIVE = [each for i, each in enumerate(DOCUMENTS) if i % 10]


@pytest.fixture(scope="module", params=CODECS)
def index(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Index]:
    """Two segments; every tenth document deleted; two with a key of their own, one without text."""
    path = tmp_path_factory.mktemp("hybrid") / "index.cf"
    model: Any = WordModel()
    with Index.build(
        path, DOCUMENTS[:150], model=model, codec=request.param, progress=False
    ) as built:
        built.add(DOCUMENTS[150:], progress=False)
        assert len(built._snapshot.segments) == 2
        built.delete([each["id"] for i, each in enumerate(DOCUMENTS) if i % 10 == 0])
        yield built


def ids(hits: list[Any]) -> list[Any]:
    return [hit.id for hit in hits]


def all_scores(index: Index, text: str) -> dict[str, float]:
    return {hit.id: hit.score for hit in index.search(text, 1000, exhaustive=True)}


QUERY = " ".join(DOCUMENTS[3]["text"].split()[:3])
OTHER = " ".join(DOCUMENTS[160 + 1]["text"].split()[:3])


@pytest.mark.parametrize("mode", ["default", "plaid", "hybrid"])
def test_a_filter_is_the_subset_that_meets_it(index: Index, mode: Any) -> None:
    wanted = [each["id"] for each in LIVE if each["year"] >= 2010 and each["lang"] == "de"]
    for condition in ("year >= 2010 AND lang = 'de'", ("year >= ? AND lang = ?", [2010, "de"])):
        hits = index.search(QUERY, 300, filter=condition, mode=mode)
        assert sorted(ids(hits)) == sorted(wanted)
        assert hits == index.search(QUERY, 300, subset=wanted, mode=mode)
    both = index.search(QUERY, 300, filter="lang IS NULL", subset=["d1", "d2", "d5"], mode=mode)
    assert sorted(ids(both)) == ["d2", "d5"]
    assert index.search(QUERY, filter="year > 3000", mode=mode) == []
    assert index.search([], filter="year > 3000", mode=mode) == []


def test_a_bad_filter_is_refused(index: Index) -> None:
    with pytest.raises(ValueError, match=r"filter: no document has the key 'yeer'; the keys are: "):
        index.search(QUERY, filter="yeer > 2000")
    with pytest.raises(TypeError, match=r"filter: expected an SQL expression"):
        index.search(QUERY, filter=2000)  # type: ignore[arg-type]


def test_candidates_are_what_is_scored(index: Index) -> None:
    scores = all_scores(index, QUERY)
    given = ["d161", "d3", "d199", "d3"]
    hits = index.search(QUERY, candidates=given)
    expected = sorted(set(given), key=lambda each: -scores[each])
    assert ids(hits) == expected
    assert [hit.score for hit in hits] == [scores[each] for each in expected]
    assert ids(index.search(QUERY, 1, candidates=given)) == expected[:1]
    assert ids(index.search(QUERY, candidates=np.array(given))) == expected
    assert ids(index.search(QUERY, candidates=given, filter="year = 2000")) == [
        each for each in expected if DOCUMENTS[int(each[1:])]["year"] == 2000
    ]
    assert index.search(QUERY, candidates=[]) == []
    assert index.rerank(QUERY, given) == hits
    assert [hit.text for hit in hits] == [DOCUMENTS[int(each[1:])]["text"] for each in expected]


def test_candidates_of_several_queries(index: Index) -> None:
    lists = [["d1", "d2", "d3"], [], ["d155"]]
    answers = index.search([QUERY, OTHER, OTHER], candidates=lists)
    assert answers == index.rerank([QUERY, OTHER, OTHER], lists)
    assert [sorted(ids(hits)) for hits in answers] == [["d1", "d2", "d3"], [], ["d155"]]
    assert answers[0] == index.rerank(QUERY, lists[0])
    assert index.rerank([], []) == []
    for given in (["12", "34"], "12"):
        with pytest.raises(TypeError, match="ids: expected a list of ids for each query, got str"):
            index.rerank([QUERY, OTHER], given)
    with pytest.raises(TypeError, match="ids: expected ids, got str"):
        index.rerank(QUERY, "12")


@pytest.mark.parametrize("every", [2, 80])
def test_candidates_with_and_without_int8_scores_first(index: Index, every: int) -> None:
    given = index.ids[::every]
    expected = index.search(QUERY, 5, subset=given, exhaustive=True)
    assert index.search(QUERY, 5, candidates=given) == expected
    assert len(index.rerank(QUERY, given)) == len(given)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"candidates": ["d1", "d0"]},
            UnknownDocumentError,
            r"candidates: not in the index: 'd0'$",
        ),
        ({"candidates": "d1"}, TypeError, r"candidates: expected ids, got str"),
        ({"candidates": 3}, TypeError, r"candidates: expected ids, got int"),
        ({"candidates": [1.5]}, TypeError, r"candidates\[0\]: an id must be a str or an int"),
        ({"candidates": [], "mode": "rerank"}, ValueError, r"leave out mode and exhaustive"),
        ({"candidates": [], "exhaustive": True}, ValueError, r"leave out mode and exhaustive"),
        ({"mode": "rerank", "nprobe": 3}, ValueError, r"mode \"rerank\" probes nothing"),
        ({"mode": "rerank", "recall": 0.9}, ValueError, r"recall=0.9 is tuned for mode"),
        ({"bm25_weight": 0.5}, ValueError, r"bm25_weight=0.5 means nothing in mode 'default'"),
        ({"mode": "hybrid", "bm25_weight": 2}, ValueError, r"bm25_weight must be from 0 to 1"),
        (
            {"mode": "hybrid", "bm25_weight": "x"},
            TypeError,
            r"bm25_weight must be a float, got str",
        ),
        ({"texts": "a"}, ValueError, r"texts= means nothing in mode 'default'"),
        ({"mode": "hybrid", "texts": ["a"]}, TypeError, r"texts: expected a text, got list"),
    ],
)
def test_arguments_that_are_refused(
    index: Index, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        index.search(QUERY, **arguments)


def test_lists_that_do_not_fit_the_queries(index: Index) -> None:
    with pytest.raises(ValueError, match="candidates: 1 lists of ids for 2 queries"):
        index.search([QUERY, QUERY], candidates=[["d1"]])
    with pytest.raises(
        TypeError, match="candidates: expected a list of ids for each query, got str"
    ):
        index.search([QUERY], candidates=["d1"])
    with pytest.raises(ValueError, match="texts: 1 for 2 queries"):
        index.search([QUERY, QUERY], mode="hybrid", texts=["a"])


def test_reranking_scores_the_best_by_bm25(index: Index) -> None:
    scores = all_scores(index, QUERY)
    snapshot = index._snapshot
    lexical = snapshot.bm25.score(QUERY)
    pool = best(lexical, 12, snapshot.live)
    assert len(pool) == 12
    first = [DOCUMENTS[at]["id"] for at in pool.tolist()]
    hits = index.search(QUERY, 5, mode="rerank", ndocs=12)
    assert ids(hits) == sorted(first, key=lambda each: (-scores[each], int(each[1:])))[:5]
    assert [hit.score for hit in hits] == [scores[hit.id] for hit in hits]
    assert index.search([QUERY, "nothing-like-it"], 5, mode="rerank", ndocs=12) == [hits, []]


def test_hybrid_fuses_both_scores(index: Index) -> None:
    scores = all_scores(index, QUERY)  # below the depth of each ranking, so all are in the union
    snapshot = index._snapshot
    lexical = snapshot.bm25.score(QUERY)
    found = index.search(QUERY, 300, mode="hybrid")
    assert sorted(ids(found)) == sorted(scores)
    places = [int(each[1:]) for each in scores]
    for weight in (0.5, 0.0, np.float32(0.75)):
        fused = fuse(lexical[places], np.array([*scores.values()], np.float32), weight)
        expected = [places[at] for at in np.lexsort((places, -fused))]
        hits = index.search(QUERY, 300, mode="hybrid", bm25_weight=weight, exhaustive=True)
        assert ids(hits) == [f"d{at}" for at in expected]
    assert ids(index.search(QUERY, 7, mode="hybrid"))[:3] == ids(found)[:3]
    batch = index.search([QUERY, OTHER, ""], 7, mode="hybrid")
    assert batch[0] == index.search(QUERY, 7, mode="hybrid")
    assert len(batch[2]) == 7  # no words, but vectors


def test_embeddings_need_their_texts_for_bm25(index: Index) -> None:
    rows = WordModel().encode_queries([QUERY, OTHER])
    for mode in ("rerank", "hybrid"):
        options: Any = {"mode": mode}
        with pytest.raises(ValueError, match=r"needs the queries' texts, .* pass texts="):
            index.search(rows[0], **options)
        assert index.search(rows, texts=[QUERY, OTHER], **options) == index.search(
            [QUERY, OTHER], **options
        )
        assert index.search(rows[0], texts=QUERY, **options) == index.search(QUERY, **options)


def test_fusion_is_of_standard_scores() -> None:
    fused = fuse(np.array([0, 2], np.float32), np.array([5, 5], np.float32), 0.25)
    assert fused.tolist() == [-0.25, 0.25]
    assert fused.dtype == np.float32
    # Means 6 and 20, standard deviations 4 and 10.
    fused = fuse(np.array([2, 10], np.float32), np.array([30, 10], np.float32), 0.25)
    assert fused.tolist() == [0.5, -0.5]


def test_no_texts_no_bm25(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = [rng.normal(size=(3, 16)).astype(np.float32) for _ in range(4)]
    with Index.build(tmp_path / "bare.cf", rows, progress=False) as bare:
        with pytest.raises(
            ValueError, match=r"mode 'hybrid' needs texts, and this index holds none"
        ):
            bare.search(rows[0], mode="hybrid", texts="a")
        assert bare.rerank(rows[0], [3, 0])[0].id == 0


@pytest.mark.parametrize("mode", ["default", "plaid", "rerank", "hybrid"])
def test_an_index_that_was_emptied(tmp_path: Path, mode: Any) -> None:
    model: Any = WordModel()
    with Index.build(tmp_path / "a.cf", DOCUMENTS[:5], model=model, progress=False) as index:
        index.delete(index.ids)
        assert index.search(QUERY, mode=mode) == []
        assert index.search([QUERY, OTHER], mode=mode) == [[], []]


def test_embeddings_of_documents(index: Index) -> None:
    vectors = index.get_embeddings(["d161", "d2", "d161"])
    assert [each.dtype for each in vectors] == [np.float32] * 3
    exact = WordModel().encode_documents([DOCUMENTS[161]["text"], DOCUMENTS[2]["text"]])
    for mine, theirs in zip(vectors, list(exact), strict=False):
        assert mine.shape == theirs.shape
        assert (mine * theirs).sum(1).min() > 0.6
    assert np.array_equal(vectors[0], vectors[2])
    with pytest.raises(UnknownDocumentError, match="ids: not in the index: 'd0'"):
        index.get_embeddings(["d0"])


def test_a_document_by_its_id(index: Index) -> None:
    found = index.get("d161")
    assert (found.id, found.text) == ("d161", DOCUMENTS[161]["text"])
    assert found.metadata == {
        key: value for key, value in DOCUMENTS[161].items() if key not in ("id", "text")
    }
    assert "d161" in index
    assert "d0" not in index  # deleted
    assert 161 not in index
    with pytest.raises(UnknownDocumentError, match="id: not in the index: 'd0'"):
        index.get("d0")


def test_deleting_by_a_filter(tmp_path: Path) -> None:
    model: Any = WordModel()
    with Index.build(tmp_path / "a.cf", DOCUMENTS[:40], model=model, progress=False) as index:
        index.add(DOCUMENTS[40:60], progress=False)
        index.delete(["d0"])
        wanted = [each["id"] for each in DOCUMENTS[1:60] if each["lang"] != "de"]
        assert index.delete(filter="lang = 'de'") == 59 - len(wanted)
        assert sorted(index.ids) == sorted(wanted)
        assert index.delete(filter=("lang = ?", ["de"])) == 0
        with pytest.raises(ValueError, match="delete: expected either ids or a filter"):
            index.delete()
        with pytest.raises(ValueError, match="no document has the key 'lung'"):
            index.delete(filter="lung = 'de'")


def test_everything_survives_compaction(tmp_path: Path) -> None:
    model: Any = WordModel()
    with Index.build(tmp_path / "a.cf", DOCUMENTS[:40], model=model, progress=False) as index:
        index.add([{"id": "x", "text": QUERY, "size": 3}], progress=False)
        index.delete(["d1"])
        assert ids(index.search(QUERY, filter="size = 3")) == ["x"]
        before = ids(index.search(QUERY, mode="rerank"))
        index.compact(progress=False)
        assert len(index._snapshot.segments) == 1
        assert ids(index.search(QUERY, filter="size = 3")) == ["x"]
        assert ids(index.search(QUERY, mode="rerank")) == before
