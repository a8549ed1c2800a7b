"""Measures agree with sums done by hand; BEIR folders are read strictly."""

from __future__ import annotations

import gzip
import json
import math

import pytest

from colbert_fast.evaluation import evaluate, load_beir, measure, retrieve, write_run
from colbert_fast.search.results import Hit

pytest.importorskip("ir_measures", reason="ir_measures is not installed (extra eval)")

QRELS = {"q1": {"d1": 3, "d2": 1}, "q2": {"d9": 1}}
RANKINGS = {"one": ["d2", "x", "d1"], "two": ["a", "b", "c", "d9"]}


class CannedIndex:
    """Answers from a table."""

    ids = ("d1", "d2", "d9")

    def search(self, queries, k, **options):
        self.options, self.asked = options, queries
        return [
            [Hit(name, 10.0 - rank) for rank, name in enumerate(RANKINGS[query][:k])]
            for query in queries
        ]


@pytest.fixture
def folder(tmp_path):
    """A collection of three documents and two judged queries of three."""
    lines = {
        "corpus.jsonl": [
            {"_id": "d1", "title": "Sky", "text": "It is blue."},
            {"_id": "d2", "title": "", "text": "Rain.", "year": 1999},
            {"_id": "q1", "text": "A document with the id of a query."},
        ],
        "queries.jsonl": [
            {"_id": "q1", "text": "one"},
            {"_id": "q2", "text": "two"},
            {"_id": "q3", "text": "unjudged"},
        ],
    }
    for name, records in lines.items():
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\td1\t3\nq1\td2\t1\nq2\tq1\t1\n"
    )
    return tmp_path


def test_measures_by_hand():
    got = evaluate(CannedIndex(), {"q1": "one", "q2": "two"}, QRELS)
    first = (1 / math.log2(2) + 3 / math.log2(4)) / (3 / math.log2(2) + 1 / math.log2(3))
    second = (1 / math.log2(5)) / (1 / math.log2(2))
    assert got["nDCG@10"] == pytest.approx((first + second) / 2)
    assert got["MRR@10"] == pytest.approx((1 + 1 / 4) / 2)
    assert got["Recall@10"] == got["Recall@100"] == 1.0


def test_cutoffs_and_other_measures():
    index, queries = CannedIndex(), {"q1": "one", "q2": "two"}
    measures = ("Recall@2", "RR(rel=3)@10", "P@1", "AP")
    got = evaluate(index, queries, QRELS, measures=measures)
    assert got == {
        "Recall@2": pytest.approx((1 / 2 + 0) / 2),
        "RR(rel=3)@10": pytest.approx((1 / 3 + 0) / 2),
        "P@1": pytest.approx((1 + 0) / 2),
        "AP": pytest.approx(((1 + 2 / 3) / 2 + 1 / 4) / 2),
    }


def test_a_query_without_results_counts_as_zero():
    assert measure({"q1": [("d1", 1.0)], "q2": []}, QRELS)["MRR@10"] == 0.5
    assert measure({"q1": [("d1", 1.0)]}, QRELS)["MRR@10"] == 0.5


def test_a_document_named_like_the_query_stays():
    run = {"q1": [("q1", 2.0), ("x", 1.0)]}
    assert measure(run, {"q1": {"q1": 1}})["MRR@10"] == 1.0


def test_options_reach_the_index():
    index = CannedIndex()
    options = {"recall": 0.9, "filter": "year > 1999", "bm25_weight": 0.2, "mode": "hybrid"}
    retrieve(index, {"q1": "one"}, **options)
    assert index.options == options
    evaluate(index, {"q1": "one"}, {"q1": {"d1": 1}}, nprobe=3, **options)
    assert index.options == {"nprobe": 3, **options}


def test_options_for_each_query_are_in_the_order_of_queries():
    index = CannedIndex()
    evaluate(index, {"q2": "two", "q1": "one"}, QRELS, candidates=[["d9"], ["d1"]])
    assert index.asked == ["two", "one"]


def test_one_measure_and_ids_that_are_numbers():
    index = CannedIndex()
    index.ids = (1, 2)
    index.search = lambda queries, k: [[Hit(2, 9.0), Hit(1, 8.0)][:k] for _ in queries]
    got = evaluate(index, {7: "one"}, {7: {1: 1}}, measures="RR@10")
    assert got == {"RR@10": 0.5}


@pytest.mark.parametrize(
    ("queries", "qrels", "options", "message"),
    [
        ({"q1": "one"}, QRELS, {}, r"`queries`.*1 of 2 are missing.*'q2'"),
        ({"q1": "one"}, {"q1": {"z": 1}}, {}, "none of the 1 judged documents is in .*Canned"),
        ({"q1": "one"}, {"q1": {"d1": 1}}, {"measures": ("nope@3",)}, "`measures`.*'nope@3'"),
        ({"q1": "one"}, {"q1": {"d1": 1}}, {"k": 50}, "`k` must be at least 100.*Recall@100"),
        ({}, {}, {}, "`qrels` must hold"),
    ],
)
def test_evaluate_refuses(queries, qrels, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(CannedIndex(), queries, qrels, **options)


def test_judged_documents_missing_in_part_are_a_warning(caplog):
    evaluate(CannedIndex(), {"q1": "one"}, {"q1": {"d1": 1, "gone": 1}})
    assert "1 of 2 judged documents" in caplog.text


def test_write_run(tmp_path):
    path = tmp_path / "out.trec"
    write_run(path, {"q1": [("d2", 1.5), ("d1", 0.1)]}, tag="t")
    assert path.read_text() == "q1 Q0 d2 1 1.5 t\nq1 Q0 d1 2 0.1 t\n"


@pytest.mark.parametrize("name", ["two words", "", "tab\t"])
def test_write_run_refuses_ids_with_spaces(tmp_path, name):
    with pytest.raises(ValueError, match="white space"):
        write_run(tmp_path / "out.trec", {"q1": [(name, 1.0)]})
    assert not (tmp_path / "out.trec").exists()


def test_load_beir(folder):
    beir = load_beir(folder)
    assert beir.queries == {"q1": "one", "q2": "two"}
    assert beir.qrels == {"q1": {"d1": 3, "d2": 1}, "q2": {"q1": 1}}
    documents = list(beir.documents())
    assert documents == list(beir.documents())
    assert documents[0] == {"id": "d1", "text": "Sky It is blue.", "title": "Sky"}
    assert documents[1] == {"id": "d2", "text": "Rain.", "title": "", "year": 1999}
    assert documents[2]["id"] == "q1"


def test_load_beir_gzipped(folder):
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        file = folder / name
        (folder / f"{name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    beir = load_beir(folder)
    assert len(beir.queries) == 2
    assert len(list(beir.documents())) == 3


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("queries.jsonl", '{"_id": "q1", "text": "one"}\n{"_id": \n', r"queries.jsonl:2: not JSON"),
        ("queries.jsonl", '{"_id": "q1"}\n', r"queries.jsonl:1: wanted '_id' and a string 'text'"),
        ("queries.jsonl", '{"_id": "q1", "text": ""}\n' * 2, r"queries.jsonl:2: .*second time"),
        ("queries.jsonl", '{"_id": "q1", "text": "one"}\n', r"test.tsv: 1 judged quer.*'q2'"),
        ("qrels/test.tsv", "q\td\ts\nq1\td1\n", r"test.tsv:2: wanted .*got 2 columns"),
        ("qrels/test.tsv", "q\td\ts\nq1\td1\thigh\n", r"test.tsv:2: wanted .*'high'"),
        ("qrels/test.tsv", "q\td\ts\n", r"no judgements"),
    ],
)
def test_load_beir_names_file_and_line(folder, name, contents, message):
    (folder / name).write_text(contents)
    with pytest.raises(ValueError, match=message):
        load_beir(folder)


def test_load_beir_names_what_is_missing(folder):
    with pytest.raises(FileNotFoundError, match=r"no dev.tsv; the splits here are: test"):
        load_beir(folder, split="dev")
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"no corpus.jsonl or corpus.jsonl.gz"):
        load_beir(folder)
