"""Rankings are those of a search, whatever was interrupted; negatives are what they should be."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from colbert_fast import Index
from colbert_fast.search.bm25 import BM25
from colbert_fast.training import tuple_files
from colbert_fast.training.data import (
    NWay,
    Texts,
    TrainingData,
    TupleFile,
    training_positives,
    write_tuples,
)
from colbert_fast.training.mining import mine, sample_tuples

DOCUMENTS = {
    "sky": "why is the sky blue",
    "plaid": "plaid late interaction search engine",
    "fast": "fast search index",
    "color": "color of the sky",
    "none": "",
}
QUERIES = {"q1": "blue sky", "q2": "search engine", "q3": "zebra", "q4": "fast index color"}


def ids_of(rankings):
    return {item.query_id: item.document_ids for item in rankings}


@pytest.fixture
def model(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed (extra encode)")
    from colbert_fast import ColBERT
    from tiny_models import write_stanford

    return ColBERT.from_pretrained(
        write_stanford(tmp_path / "model", metadata={"query_maxlen": 8, "doc_maxlen": 32})
    )


def test_bm25(caplog):
    rankings = mine("bm25", QUERIES, DOCUMENTS, progress=False)
    assert ids_of(rankings) == {
        "q1": ("sky", "color"),
        "q2": ("plaid", "fast"),
        "q4": ("fast", "color"),
    }
    assert all(list(item.scores) == sorted(item.scores, reverse=True) for item in rankings)
    assert "nothing was found for 1 of 4 queries" in caplog.text
    assert ids_of(mine("bm25", QUERIES, DOCUMENTS, depth=1, progress=False)) == {
        "q1": ("sky",),
        "q2": ("plaid",),
        "q4": ("fast",),
    }


@pytest.mark.parametrize("part_size", [1, 2, 100])
def test_an_index_is_searched_in_parts(tmp_path, model, part_size):
    documents = list(DOCUMENTS.items())
    with Index.build(tmp_path / "a.cf", documents, model=model, progress=False) as index:
        rankings = mine(
            index, QUERIES, depth=3, part_size=part_size, exhaustive=True, progress=False
        )
        wanted = index.search(list(QUERIES.values()), 3, exhaustive=True)
    assert [item.query_id for item in rankings] == list(QUERIES)
    for item, hits in zip(rankings, wanted, strict=True):
        assert item.document_ids == tuple(hit.id for hit in hits)
        assert item.scores == tuple(hit.score for hit in hits)


def test_a_model_indexes_first(tmp_path, model):
    rankings = mine(model, QUERIES, DOCUMENTS, depth=3, exhaustive=True, progress=False)
    path = tmp_path / "kept.cf"
    options = {"depth": 3, "exhaustive": True, "progress": False, "index_path": path}
    assert mine(model, QUERIES, DOCUMENTS, **options) == rankings
    built = (path / "manifest.json").stat().st_mtime_ns
    assert mine(model, QUERIES, DOCUMENTS, **options) == rankings
    assert (path / "manifest.json").stat().st_mtime_ns == built
    with pytest.raises(ValueError, match=r"kept.cf: an index of other documents; remove it"):
        mine(model, QUERIES, {**DOCUMENTS, "sky": "blue"}, **options)
    with Index.open(path, model=model) as index:
        assert mine(index, QUERIES, depth=3, exhaustive=True, progress=False) == rankings


def test_parts_are_of_one_setting_of_the_texts(tmp_path, model):
    out = tmp_path / "a.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", broken_replace(Path.replace))
        with pytest.raises(Interrupted):
            mine(model, QUERIES, DOCUMENTS, out=out, part_size=1, progress=False)
    other = type(model).from_pretrained(tmp_path / "model", query_length=4)
    with pytest.raises(ValueError, match="parts of rankings with other source; remove"):
        mine(other, QUERIES, DOCUMENTS, out=out, part_size=1, progress=False)


FULL = OSError(errno.ENOSPC, "No space left on device", "rankings")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), FULL], ids=["ctrl-c", "full disk"])
def test_what_stops_in_a_part_loses_no_other(tmp_path, monkeypatch, error):
    asked, format_line = [], tuple_files.format_line
    score = BM25.score

    def failing(item, layout):
        if item.query_id == "q4" and len(asked) == 4:
            raise error
        return format_line(item, layout)

    monkeypatch.setattr(BM25, "score", lambda *args: asked.append(args[1]) or score(*args))
    monkeypatch.setattr(tuple_files, "format_line", failing)
    out = tmp_path / "rankings.jsonl"
    options = {"out": out, "part_size": 1, "progress": False}
    with pytest.raises(type(error)):
        mine("bm25", QUERIES, DOCUMENTS, **options)
    assert not list(tmp_path.rglob("*.partial"))
    rankings = mine("bm25", QUERIES, DOCUMENTS, **options)
    assert asked == [*QUERIES.values(), QUERIES["q4"]]
    assert ids_of(rankings) == ids_of(mine("bm25", QUERIES, DOCUMENTS, progress=False))
    assert list(tmp_path.iterdir()) == [out]


class Interrupted(Exception):
    pass


def test_what_was_mined_is_not_searched_again(tmp_path, monkeypatch):
    asked = []
    score = BM25.score

    def counting(self, query):
        if query == QUERIES["q4"] and len(asked) == 3:
            raise Interrupted
        asked.append(query)
        return score(self, query)

    out = tmp_path / "mined" / "rankings.jsonl"
    options = {"out": out, "part_size": 1, "progress": False}
    monkeypatch.setattr(BM25, "score", counting)
    with pytest.raises(Interrupted):
        mine("bm25", QUERIES, DOCUMENTS, **options)
    assert not out.exists()
    for other in ({"q1": "red sky"}, {**QUERIES, "q5": "is"}):
        with pytest.raises(ValueError, match="parts of rankings with other queries; remove"):
            mine("bm25", other, DOCUMENTS, **options)
    with pytest.raises(ValueError, match="parts of rankings with other depth, documents; remove"):
        mine("bm25", QUERIES, {"sky": "blue"}, depth=7, **options)
    asked.append("a fourth")
    rankings = mine("bm25", QUERIES, Texts.open(DOCUMENTS, cache=tmp_path / "texts"), **options)
    assert asked == [*list(QUERIES.values())[:3], "a fourth", QUERIES["q4"]]
    assert list(rankings) == mine("bm25", QUERIES, DOCUMENTS, progress=False)
    assert list(out.parent.iterdir()) == [out]
    assert json.loads(out.read_text().splitlines()[0])["query_id"] == "q1"
    with pytest.raises(FileExistsError, match=r"rankings.jsonl: there already"):
        mine("bm25", QUERIES, DOCUMENTS, **options)


def test_a_half_written_part_is_searched_again(tmp_path):
    out = tmp_path / "a.jsonl"
    wanted = mine("bm25", QUERIES, DOCUMENTS, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", broken_replace(Path.replace))
        with pytest.raises(Interrupted):
            mine("bm25", QUERIES, DOCUMENTS, out=out, part_size=1, progress=False)
    assert list(mine("bm25", QUERIES, DOCUMENTS, out=out, part_size=1, progress=False)) == wanted


def broken_replace(replace):
    """A process that dies before its second part has its name."""

    def die(self, target):
        if "0000000001.jsonl" in str(target):
            raise Interrupted
        return replace(self, target)

    return die


def test_arguments(tmp_path):
    with pytest.raises(TypeError, match="`source` must be 'bm25', an Index or a ColBERT; got 'bm"):
        mine("bm42", QUERIES, DOCUMENTS)
    with pytest.raises(ValueError, match="`documents` are needed"):
        mine("bm25", QUERIES)
    with pytest.raises(TypeError, match="BM25 has no options; got nprobe"):
        mine("bm25", QUERIES, DOCUMENTS, out=tmp_path / "a.jsonl", nprobe=3)
    with pytest.raises(ValueError, match="`depth` must be at least 1; got 0"):
        mine("bm25", QUERIES, DOCUMENTS, depth=0)
    with pytest.raises(ValueError, match="`queries` must hold at least one"):
        mine("bm25", {}, DOCUMENTS)
    with pytest.raises(ValueError, match=r"`out` must be a .jsonl; got .*a.json'"):
        mine("bm25", QUERIES, DOCUMENTS, out=tmp_path / "a.json")
    assert not any(tmp_path.iterdir())
    for out in (None, tmp_path / "a.jsonl"):
        with pytest.raises(ValueError, match="nothing was found for any of 1 queries"):
            mine("bm25", {"q": "zebra"}, DOCUMENTS, out=out, progress=False)


RANKING = tuple(f"d{i}" for i in range(100))
POSITIVES = {f"q{i}": ["p", f"d{i}"] for i in range(30)}
RANKINGS = [NWay(query, RANKING) for query in POSITIVES]
BANDS = ((0, 10, 0.25), (10, 50, 0.75))


def test_negatives_come_from_bands():
    tuples = list(sample_tuples(RANKINGS, POSITIVES, nway=13, bands=BANDS))
    assert [item.query_id for item in tuples] == [q for q in POSITIVES for _ in range(2)]
    for item in tuples:
        positive, *negatives = item.document_ids
        assert positive in POSITIVES[item.query_id]
        assert not {*negatives} & {*POSITIVES[item.query_id]}
        candidates = [each for each in RANKING if each not in POSITIVES[item.query_id]]
        ranks = [candidates.index(each) for each in negatives]
        assert ranks == sorted(set(ranks))
        assert sum(rank < 10 for rank in ranks) == 3
        assert sum(10 <= rank < 50 for rank in ranks) == 9
    drawn = Counter(each for item in tuples for each in item.document_ids[1:])
    assert len(drawn) == 51  # of 60 tuples, nothing within the bands is spared


def test_what_is_left_of_shares_goes_to_any_band():
    tuples = sample_tuples(RANKINGS, POSITIVES, nway=2, bands=((0, 20, 0.5), (20, 100, 0.5)))
    near = sum(int(item.document_ids[1][1:]) <= 20 for item in tuples)
    assert 15 <= near <= 45  # of 60, expected 30 with a standard deviation of 4


def test_samples_depend_on_seed_and_query():
    first = list(sample_tuples(RANKINGS, POSITIVES, nway=5))
    again = list(sample_tuples(RANKINGS[::-1], POSITIVES, nway=5))
    assert sorted(first) == sorted(again)
    other = list(sample_tuples(RANKINGS, POSITIVES, nway=5, seed=1))
    assert sum(a == b for a, b in zip(first, other, strict=True)) < 5


def test_short_bands_are_made_up_for(caplog):
    rankings = {"q": [(f"d{i}", 1.0 - i) for i in range(6)]}
    [item] = sample_tuples(rankings, {"q": {"p": 1, "d0": 0}}, nway=7, bands=BANDS)
    assert item.document_ids == ("p", "d0", "d1", "d2", "d3", "d4", "d5")
    [item] = sample_tuples(rankings, {"q": ["p"]}, nway=6, bands=((0, 2, 0.2), (2, 9, 0.8)))
    assert {*item.document_ids} < {"p", *(f"d{i}" for i in range(6))}
    assert not caplog.records
    fill = ["d5", "p", "x", "y", "x"]
    [item] = sample_tuples(rankings, {"q": ["p"]}, nway=9, fill=fill)
    assert item.document_ids[:7] == ("p", "d0", "d1", "d2", "d3", "d4", "d5")
    assert {*item.document_ids[7:]} == {"x", "y"}
    with pytest.raises(ValueError, match="no tuple: of 1 ranked queries"):
        list(sample_tuples(rankings, {"q": ["p"]}, nway=10, fill=fill))


def test_nothing_is_left_out_silently(caplog):
    caplog.set_level(logging.WARNING)
    rankings = [*RANKINGS, NWay("few", ("d1",)), NWay("unjudged", RANKING)]
    positives = {**POSITIVES, "few": ["p"], "unranked": ["p"], "unjudged": {"p": 0}}
    assert len(list(sample_tuples(rankings, positives, nway=5))) == 60
    for message in (
        "1 ranked queries have no positive; the first is of query 'unjudged'",
        "1 queries with positives have no ranking; the first is of query 'unranked'",
        "1 positives have too few candidates: mine deeper, or pass `fill`; the first is of",
    ):
        assert message in caplog.text
    with pytest.raises(ValueError, match="no tuple: of 30 ranked queries 30 have no positive"):
        list(sample_tuples(RANKINGS, {}, nway=5))


def test_near_positives_are_left_out():
    scores = {"q": {"p": 4.0, **{f"d{i}": 5.0 - i / 10 for i in range(100)}}}
    rankings, positives = [NWay("q", RANKING)], {"q": ["p"]}
    everything = {"nway": None, "bands": ((0, 100, 1.0),), "teacher_scores": scores}
    [item] = sample_tuples(rankings, positives, **everything)
    assert item.document_ids == ("p", *RANKING)
    assert item.scores == tuple(scores["q"][each] for each in item.document_ids)
    [item] = sample_tuples(rankings, positives, margin=0.55, **everything)
    assert item.document_ids == ("p", *RANKING[16:])  # 5 - 1.6 <= 4 - 0.55
    [item] = sample_tuples(rankings, positives, ratio=0.75, **everything)
    assert item.document_ids == ("p", *RANKING[20:])
    [item] = sample_tuples(rankings, positives, ratio=0.75, margin=2.05, **everything)
    assert item.document_ids == ("p", *RANKING[31:])
    # The teacher's file will do as well.
    scored = [NWay("q", ("p", *RANKING[:60]), tuple(scores["q"][d] for d in ("p", *RANKING[:60])))]
    scored += [NWay("q", RANKING[60:], tuple(scores["q"][d] for d in RANKING[60:]))]
    options = {"nway": 9, "bands": ((0, 20, 0.5), (20, 100, 0.5)), "margin": 0.55}
    [item] = sample_tuples(rankings, positives, teacher_scores=scored, **options)
    [same] = sample_tuples(rankings, positives, teacher_scores=scores, **options)
    assert item == same
    assert max(item.scores[1:]) <= 4 - 0.55


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nway": 1}, "`nway` must be at least 2"),
        ({"bands": ((0, 20, 0.5), (10, 30, 0.5))}, "`bands` must be .*ascending and apart"),
        ({"bands": ((0, 20),)}, "`bands` must be"),
        ({"bands": ((0, 20, 0.5), (20, 30, 0.4))}, "add up to 1; .* make 0.9"),
        ({"positives_per_query": 0}, "`positives_per_query` must be at least 1"),
        ({"margin": 1.0}, "pass `teacher_scores` too"),
        ({"fill": ["x"], "teacher_scores": {}}, "pass only one"),
        ({"teacher_scores": [NWay("q0", ("p",))]}, "has no scores for query 'q0'"),
        ({"teacher_scores": {"q0": {"p": 1.0}}}, "no score of document 'd.*' for query 'q0'"),
        ({"teacher_scores": {"q0": {"p": -1.0}}, "ratio": 0.9}, "use `margin`"),
    ],
)
def test_sampling_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        list(sample_tuples(RANKINGS, POSITIVES, **{"nway": 5, **options}))


def test_some_of_many_positives():
    tuples = list(sample_tuples(RANKINGS, POSITIVES, nway=5, positives_per_query=1))
    assert len(tuples) == 30
    assert {item.document_ids[0] == "p" for item in tuples} == {True, False}


def test_end_to_end_with_a_tiny_model(tmp_path, model):
    """Mine, sample, write, read: every example is about the right texts."""
    rng = np.random.default_rng(0)
    words = ["sky", "is", "blue", "why", "plaid", "late", "search", "engine", "fast", "index"]
    documents = {f"d{i}": " ".join(rng.choice(words, 8)) for i in range(200)}
    queries = {f"q{i}": " ".join(rng.choice(words, 3)) for i in range(40)}
    positives = {f"q{i}": {f"d{i}": 1} for i in range(40)}
    rankings = mine(
        model, queries, documents, depth=60, out=tmp_path / "mined.jsonl", progress=False
    )
    assert isinstance(rankings, TupleFile)
    assert len(rankings) == 40
    path = tmp_path / "tuples.jsonl"
    assert write_tuples(path, sample_tuples(rankings, positives, nway=8)) == 40
    data = TrainingData(queries, documents, TupleFile(path))
    for example in data:
        assert example.query == queries[example.query_id]
        assert example.document_ids[0] == f"d{example.query_id[1:]}"
        assert [documents[each] for each in example.document_ids] == list(example.documents)
        assert len({*example.document_ids}) == 8


def test_a_real_collection(tmp_path):
    """Training questions of a real collection find their answers, and get hard negatives."""
    folder = Path(os.environ.get("COLBERT_FAST_SHARED", "../shared")) / "data/beir/scitldr"
    if not folder.is_dir():
        pytest.skip(f"no collection at {folder}")
    positives = training_positives(folder)
    queries = Texts.open(folder / "queries.jsonl")
    chosen = {query: queries[query] for query in list(positives)[:200]}
    documents = Texts.open(folder, cache=tmp_path / "texts")
    rankings = mine("bm25", chosen, documents, depth=50, progress=False)
    found = sum(bool({*item.document_ids} & {*positives[item.query_id]}) for item in rankings)
    assert found > 180
    tuples = list(sample_tuples(rankings, {query: positives[query] for query in chosen}, nway=16))
    assert len(tuples) == 200
    data = TrainingData(chosen, documents, tuples, nway=4)
    assert all(all(example.documents) for example in data)
