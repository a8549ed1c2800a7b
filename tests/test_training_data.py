"""Tuples survive every layout; texts are found in memory and on disk; mistakes name their line."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from colbert_fast.errors import MissingDependencyError, UnknownDocumentError
from colbert_fast.training import texts
from colbert_fast.training.data import (
    NWay,
    Texts,
    TrainingData,
    TupleFile,
    read_tuples,
    training_positives,
    write_tuples,
)
from colbert_fast.training.files import replacing

SCORED = [
    NWay("7", ("3", "doc-a", "007"), (0.1, -2.5e-7, 3.0)),
    NWay("q é", ("1", "2"), (1 / 3, 12345678.9)),
]
PLAIN = [NWay("7", ("3", "doc-a", "007")), NWay("8", ("1", "2"))]
BARE = [NWay("1", ("2", "3")), NWay("4", ("5", "6"))]
FILES = [
    ("stanford", "a.jsonl"),
    ("stanford", "a.json.gz"),
    ("pylate", "a.jsonl"),
    ("pylate", "a.jsonl.gz"),
    ("pylate", "a.parquet"),
    ("pylate", "folder"),
]


@pytest.fixture
def datasets(tmp_path_factory, monkeypatch):
    """The package, which unpacks parquet files into a cache: not into that of the user."""
    module = pytest.importorskip("datasets", reason="datasets is not installed (extra train)")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    return module


@pytest.mark.parametrize(("layout", "name"), FILES)
@pytest.mark.parametrize("tuples", [SCORED, PLAIN], ids=["scored", "plain"])
def test_round_trip(tmp_path, request, layout, name, tuples):
    if name in ("a.parquet", "folder"):
        request.getfixturevalue("datasets")
    path = tmp_path / name
    assert write_tuples(path, iter(tuples), layout=layout) == 2
    assert list(read_tuples(path)) == tuples
    assert [each.name for each in tmp_path.iterdir()] == [name]
    if not name.endswith(".gz"):
        assert list(TupleFile(path)) == tuples


def test_layouts_on_disk(tmp_path):
    write_tuples(tmp_path / "a.jsonl", SCORED[:1])
    assert json.loads((tmp_path / "a.jsonl").read_text()) == [
        7,
        [3, 0.1],
        ["doc-a", -2.5e-7],
        ["007", 3.0],
    ]
    write_tuples(tmp_path / "a.jsonl", PLAIN[:1], layout="pylate")
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {
        "query_id": "7",
        "document_ids": ["3", "doc-a", "007"],
    }


@pytest.mark.parametrize(
    ("name", "contents", "tuples"),
    [
        ("a.jsonl", "[1, 2, 3]\n\n[4, 5, 6]\n", BARE),
        ("a.json", "\ufeff[1, 2, 3]\r\n  \r\n[4, 5, 6]", BARE),
        ("a.jsonl", "\n\n[1, 2, 3]\n[4, 5, 6]\n\n", BARE),
        ("a.tsv", "1\t2\t3\n4\t5\t6\r\n", BARE),
        ("a.jsonl", '["q", ["d", 1]]\n', [NWay("q", ("d",), (1.0,))]),
        ("a.jsonl", "[5, [[0.5, 7], [2, 8]]]\n", [NWay("5", ("7", "8"), (0.5, 2.0))]),
        (
            "a.jsonl",
            '{"query_id": 5, "document_ids": "[7, \'8\']", "scores": "[0.5, 2]", "x": 1}\n',
            [NWay("5", ("7", "8"), (0.5, 2.0))],
        ),
    ],
)
def test_layouts_of_others(tmp_path, name, contents, tuples):
    (tmp_path / name).write_bytes(contents.encode())
    assert list(read_tuples(tmp_path / name)) == tuples
    assert list(TupleFile(tmp_path / name)) == tuples
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(contents.encode()))
    assert list(read_tuples(tmp_path / f"{name}.gz")) == tuples


def test_datasets_of_others(tmp_path, datasets):
    """Integer ids, a dictionary of splits, lists as text."""
    rows = {"query_id": [5], "document_ids": ["[7, 8]"], "scores": ["[0.5, 2.0]"], "x": [1]}
    train = datasets.Dataset.from_dict(rows)
    datasets.DatasetDict({"train": train}).save_to_disk(str(tmp_path / "splits"))
    assert list(read_tuples(tmp_path / "splits")) == [NWay("5", ("7", "8"), (0.5, 2.0))]
    datasets.DatasetDict({"test": train}).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(ValueError, match="other: no split 'train', only test"):
        TupleFile(tmp_path / "other")
    train.remove_columns("document_ids").save_to_disk(str(tmp_path / "columns"))
    with pytest.raises(ValueError, match=r"columns: wanted the columns.*got query_id, scores, x"):
        TupleFile(tmp_path / "columns")
    rows["scores"] = ["[0.5]"]
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "short"))
    with pytest.raises(ValueError, match="short: row 0: 1 scores for 2 documents"):
        list(read_tuples(tmp_path / "short"))
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match=r"a.parquet: not a readable parquet file"):
        TupleFile(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("5", "wanted a list or an object, got int"),
        ("[5]", "wanted a query id and documents, got 1 values"),
        ("[5, 6, [7, 1.0]]", r"wanted \[document, score\] for every document or none, got 6"),
        ("[5, [6, 1.0], [7]]", r"or none, got \[7\]"),
        ("[5, [6, 1.0], [7, NaN]]", "a score must be a finite number, got nan"),
        (f"[5, [6, {'9' * 400}]]", "a score must be a finite number, got 9999"),
        ("[5, [6, 1.0], [7, true]]", "a score must be a finite number, got True"),
        ("[5, [1.5, 6], [0.5, 7]]", "the id of a document must be a string or an integer, got 1.5"),
        ("[null, 6, 7]", "the id of a query must be a string or an integer, got None"),
        ('{"query_id": 1, "pids": [1]}', "got the keys: query_id, pids"),
        ('{"query_id": 1, "document_ids": []}', "query 1 has no documents"),
        ('{"query_id": 1, "document_ids": [1, 2], "scores": [1]}', "1 scores for 2 documents"),
        ('{"query_id": 1, "document_ids": "f(2)"}', "`document_ids` is text, but not that of"),
        ('{"query_id": 1, "document_ids": 7}', "`document_ids` must be a list, got int"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text(f"[1, 2, 3]\n\n{line}\n[4, 5, 6]\n")
    with pytest.raises(ValueError, match=rf"a.jsonl:3: .*{message}"):
        list(read_tuples(path))
    tuples = TupleFile(path)
    assert (tuples[0], tuples[2]) == tuple(BARE)
    with pytest.raises(ValueError, match=rf"a.jsonl:3: .*{message}"):
        tuples[1]


def test_bad_files_are_named(tmp_path):
    for read in (read_tuples, TupleFile):
        with pytest.raises(FileNotFoundError, match=r"a.jsonl: no such file"):
            read(tmp_path / "a.jsonl")
        with pytest.raises(ValueError, match=r"a.csv: cannot tell.*'.csv'"):
            read(tmp_path / "a.csv")
    (tmp_path / "a.jsonl").write_bytes(b'[1, 2, 3]\n["\xff", 2, 3]\n')
    with pytest.raises(ValueError, match=r"a.jsonl:2: not UTF-8"):
        TupleFile(tmp_path / "a.jsonl")[1]
    (tmp_path / "a.jsonl").write_text("\n \n")
    with pytest.raises(ValueError, match=r"a.jsonl: no tuples"):
        TupleFile(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"[1, 2, 3]\n"))
    with pytest.raises(ValueError, match=r"a.jsonl.gz: lines of a gzipped file.*unpack it"):
        TupleFile(tmp_path / "a.jsonl.gz")


def test_missing_datasets_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for call in (
        lambda: TupleFile(tmp_path / "a.parquet"),
        lambda: write_tuples(tmp_path / "b.parquet", SCORED, layout="pylate"),
        lambda: write_tuples(tmp_path / "folder", SCORED, layout="pylate"),
    ):
        with pytest.raises(MissingDependencyError, match=r"colbert-fast\[train\]"):
            call()


def test_tuple_file_is_a_sequence(tmp_path):
    tuples = [NWay(f"q{i}", (f"d{i}", "x"), (i / 7, 0.0)) for i in range(300)]
    write_tuples(tmp_path / "a.jsonl", tuples)
    file = TupleFile(tmp_path / "a.jsonl")
    assert len(file) == 300
    assert [file[i] for i in (299, 0, 17, -1, -300)] == [tuples[i] for i in (299, 0, 17, 299, 0)]
    assert file[10:20:3] == tuples[10:20:3]
    assert file.where(17) == f"{tmp_path / 'a.jsonl'}:18"
    with pytest.raises(IndexError, match="no tuple 300, there are 300"):
        file[300]


def test_tuple_file_is_pickled_by_place(tmp_path):
    tuples = [NWay(f"q{i}", ("d" * 1000, "x")) for i in range(100)]
    write_tuples(tmp_path / "a.jsonl", tuples)
    file = TupleFile(tmp_path / "a.jsonl")
    assert file[3] == tuples[3]  # now it is mapped
    data = pickle.dumps(file)
    assert len(data) < 2000
    assert list(pickle.loads(data)) == tuples


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.jsonl"
    write_tuples(path, BARE)

    def failing():
        yield PLAIN[0]
        raise RuntimeError("the teacher is ill")

    with pytest.raises(RuntimeError, match="ill"):
        write_tuples(path, failing())
    with pytest.raises(ValueError, match=r"tuples\[1\]: a score must be a finite number, got inf"):
        write_tuples(path, [SCORED[0], NWay("1", ("2",), (float("inf"),))])
    assert list(read_tuples(path)) == BARE
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("datasets")
def test_write_refuses_what_it_cannot_write(tmp_path):
    with pytest.raises(ValueError, match="`layout` must be one of"):
        write_tuples(tmp_path / "a.jsonl", BARE, layout="beir")
    for name, layout in (("a.parquet", "stanford"), ("folder", "stanford"), ("a.tsv", "pylate")):
        with pytest.raises(ValueError, match=f"{name}: layout '{layout}' is written as .jsonl"):
            write_tuples(tmp_path / name, BARE, layout=layout)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="mine: something else is there"):
        write_tuples(tmp_path / "mine", BARE, layout="pylate")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def write_beir(folder):
    (folder / "qrels").mkdir(parents=True)
    documents = [
        {"_id": "d1", "title": "Sky", "text": "It is blue."},
        {"_id": "d2", "title": "", "text": "Rain."},
        {"_id": "d3", "text": "Snow."},
    ]
    queries = [{"_id": "q1", "text": "why blue"}, {"_id": "q2", "text": "why wet"}]
    for name, records in (("corpus", documents), ("queries", queries)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines)
    judged = "q1\td1\t2\nq1\td2\t0\nq2\td2\t1\n"
    (folder / "qrels" / "train.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    return folder


TEXTS = {"d1": "Sky It is blue.", "d2": "Rain.", "d3": "Snow."}


@pytest.mark.parametrize("cache", [None, "cache"], ids=["memory", "disk"])
def test_texts(tmp_path, cache):
    folder = write_beir(tmp_path / "beir")
    cache = cache and tmp_path / cache
    (tmp_path / "a.tsv").write_text("1\tone\n2\ttwo\n")
    for source, wanted in (
        (folder, TEXTS),
        (str(folder / "queries.jsonl"), {"q1": "why blue", "q2": "why wet"}),
        (tmp_path / "a.tsv", {"1": "one", "2": "two"}),
        ({1: "one"}, {"1": "one"}),
        ([{"id": 5, "text": "five"}, {"id": "x", "text": ""}], {"5": "five", "x": ""}),
        (iter(["zero", "one"]), {"0": "zero", "1": "one"}),
    ):
        texts = Texts.open(source, cache=cache)
        assert dict(texts) == wanted
        assert list(texts) == list(wanted)
        assert len(texts) == len(wanted)
        several = [*reversed(wanted), next(iter(wanted))]
        assert texts.many(several) == [wanted[each] for each in several]
        assert "nobody" not in texts
        assert texts.get("nobody") is None
        copy = pickle.loads(pickle.dumps(texts))
        assert dict(copy) == wanted
        with pytest.raises(UnknownDocumentError, match=r"no text with the id 'nobody'; the \d ids"):
            texts.many(["nobody"])


@pytest.mark.parametrize("cache", [None, "cache"], ids=["memory", "disk"])
def test_texts_of_datasets(tmp_path, datasets, cache):
    cache = cache and tmp_path / cache
    data = datasets.Dataset.from_dict({"text": ["one", "two"], "query_id": [1, 2]})
    data.save_to_disk(str(tmp_path / "queries"))
    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "splits"))
    data.to_parquet(str(tmp_path / "queries.parquet"))
    for name in ("queries", "splits", "queries.parquet"):
        texts = Texts.open(tmp_path / name, cache=cache)
        assert dict(texts) == {"1": "one", "2": "two"}
    if cache:
        assert dict(Texts.open(cache)) == {"1": "one", "2": "two"}
    data.remove_columns("query_id").save_to_disk(str(tmp_path / "bare"))
    with pytest.raises(ValueError, match=r"bare: wanted the columns text and one of.*got text"):
        Texts.open(tmp_path / "bare", cache=cache)


def test_texts_errors(tmp_path):
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(ValueError, match=r"'1'.*(second time|more than one)"):
            Texts.open([("1", "one"), (1, "two")], cache=cache)
        with pytest.raises(ValueError, match="document 0 has no text"):
            Texts.open([np.ones((2, 4), np.float32)], cache=cache)
        with pytest.raises(FileNotFoundError):
            Texts.open(tmp_path / "absent.jsonl", cache=cache)
    with pytest.raises(ValueError, match="no texts to keep"):
        Texts.open({}, cache=tmp_path / "cache")
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="mine: something else is there"):
        Texts.open({"1": "one"}, cache=tmp_path / "mine")
    assert {each.name for each in tmp_path.iterdir()} == {"mine", "mine.lock", "cache.lock"}


def test_stored_texts_are_written_once(tmp_path):
    path, cache = tmp_path / "a.tsv", tmp_path / "cache"
    path.write_text("1\tone\n")
    Texts.open(path, cache=cache)
    written = (cache / "documents.sqlite").stat().st_ino
    Texts.open(path, cache=cache)
    assert (cache / "documents.sqlite").stat().st_ino == written
    path.write_text("1\tone more\n")
    assert dict(Texts.open(path, cache=cache)) == {"1": "one more"}


def test_an_interrupted_exchange_puts_the_old_folder_back(tmp_path, monkeypatch):
    path, replace = tmp_path / "a", Path.replace
    path.mkdir()
    (path / "mark").write_text("old")

    def interrupted(self, target):
        replace(self, target)
        if self == path:
            raise KeyboardInterrupt

    def write():
        with replacing(path, folder_with="mark") as partial:
            partial.mkdir()
            (partial / "mark").write_text("new")

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert (path / "mark").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_only_folders_are_rooms_of_writers(tmp_path):
    file = tmp_path / f"a.{32 * '0'}.partial"
    file.write_text("someone's")
    with replacing(tmp_path / "a") as partial:
        partial.write_text("new")
    assert file.read_text() == "someone's"


def test_replacing_folders(tmp_path):
    path = tmp_path / "kept"

    def write(text):
        with replacing(path, folder_with="mark") as partial:
            partial.mkdir()
            (partial / "mark").write_text(text)
            if text == "failing":
                raise RuntimeError(text)

    write("old")
    with pytest.raises(RuntimeError, match="failing"):
        write("failing")
    assert (path / "mark").read_text() == "old"
    write("new")
    assert (path / "mark").read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_leaves_is_gone_after_the_next(tmp_path, kind):
    script = Path(__file__).parent / "faults" / "killed_writer.py"
    run = subprocess.run(
        [sys.executable, script, tmp_path, kind], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 10


def test_what_a_living_writer_has_is_left_alone(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as first:
        first.write_text("first")
        with replacing(path) as second:
            second.write_text("second")
        assert first.read_text() == "first"
    assert path.read_text() == "first"


def test_one_thread_writes_the_cache(tmp_path, monkeypatch):
    path = tmp_path / "a.tsv"
    path.write_text("1\tone\n")
    store, written = texts._store, []
    monkeypatch.setattr(texts, "_store", lambda *args: [written.append(1), store(*args)])
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: Texts.open(path, cache=tmp_path / "cache"), range(4)))
    assert [dict(each) for each in opened] == [{"1": "one"}] * 4
    assert written == [1]


# torch has threads, of which Python 3.12 warns; they do not run Python.
FORKED = """
import sys
import torch
from colbert_fast.training.data import NWay, Texts, TrainingData, TupleFile, write_tuples

folder = sys.argv[1]
texts = Texts.open({str(i): f"text {i}" for i in range(40)}, cache=f"{folder}/cache")
write_tuples(f"{folder}/a.jsonl", [NWay(str(i), (str(i), str(39 - i))) for i in range(40)])
data = TrainingData(texts, texts, TupleFile(f"{folder}/a.jsonl"))
wanted = list(data)  # file and store are open in this process
loader = torch.utils.data.DataLoader(
    data, batch_size=None, num_workers=2, collate_fn=tuple, multiprocessing_context="fork"
)
assert [tuple(example) for example in loader] == [tuple(example) for example in wanted]
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_texts_are_read_after_a_fork(tmp_path):
    """As in the workers of a data loader; from a process without the threads of this one."""
    pytest.importorskip("torch", reason="torch is not installed (extra encode)")
    subprocess.run([sys.executable, "-c", FORKED, str(tmp_path)], check=True)


def make_data(tmp_path, **options):
    folder = write_beir(tmp_path / "beir")
    queries, documents = Texts.open(folder / "queries.jsonl"), Texts.open(folder)
    tuples = [NWay("q1", ("d1", "d2"), (2.0, 1.0)), NWay("q2", ("d2", "d3", "d1"), (3.0, 2.0, 1.0))]
    return TrainingData(queries, documents, tuples, **options)


def test_examples(tmp_path):
    data = make_data(tmp_path)
    assert len(data) == 2
    assert data.nway == 2
    assert data[0] == ("why blue", (TEXTS["d1"], TEXTS["d2"]), (2.0, 1.0), "q1", ("d1", "d2"))
    example = data[-1]
    assert example.document_ids in (("d2", "d3"), ("d2", "d1"))
    assert example.documents == tuple(TEXTS[each] for each in example.document_ids)
    assert example.scores == (3.0, 2.0 if example.document_ids[1] == "d3" else 1.0)
    assert data[:] == [data[0], data[1]]


def test_samples_depend_on_seed_and_place():
    documents = {str(i): f"text {i}" for i in range(50)}
    tuples = [NWay("q", tuple(documents)) for _ in range(20)]

    def ids(seed):
        data = TrainingData({"q": "?"}, documents, tuples, nway=8, seed=seed)
        return [data[i].document_ids for i in reversed(range(20))]

    first = ids(1)
    assert first == ids(1)
    assert first != ids(2)
    assert len(set(first)) == 20
    for each in first:
        assert each[0] == "0"
        assert len(set(each)) == 8
        assert list(each) == sorted(each, key=int)
    chosen = np.bincount([int(name) for seed in range(50) for each in ids(seed) for name in each])
    assert chosen[1:].min() > 90  # of 143 expected, with a standard deviation of 11


def test_bad_examples_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"tuples\[0\]: 2 documents, wanted `nway` = 3"):
        make_data(tmp_path / "a", nway=3)[0]
    with pytest.raises(ValueError, match="`nway` must be at least 1; got 0"):
        make_data(tmp_path / "b", nway=0)
    with pytest.raises(ValueError, match="`tuples` must hold at least one"):
        TrainingData({}, {}, [])
    path = tmp_path / "a.jsonl"
    path.write_text('["q1", "d1", "d2"]\n["q1", "d1", "d9"]\n["q9", "d1", "d2"]\n')
    data = TrainingData({"q1": "?"}, TEXTS, TupleFile(path))
    with pytest.raises(UnknownDocumentError, match=r"a.jsonl:2: documents: no text.*'d9'"):
        data[1]
    with pytest.raises(UnknownDocumentError, match=r"a.jsonl:3: queries: no text.*'q9'"):
        data[2]
    bad = TrainingData({"q1": "?"}, TEXTS, [NWay("q1", ("d1", "d2"), (float("nan"), 1.0))])
    with pytest.raises(ValueError, match=r"tuples\[0\]: a score must be a finite number"):
        bad[0]
    numpy = np.array([1.5, 0.0], np.float32)
    good = TrainingData({"q1": "?"}, TEXTS, [NWay("q1", ("d1", "d2"), tuple(numpy))])
    assert good[0].scores == (1.5, 0.0)


def test_training_positives(tmp_path, caplog):
    folder = write_beir(tmp_path / "beir")
    assert training_positives(folder) == {"q1": {"d1": 2}, "q2": {"d2": 1}}
    assert not caplog.records
    assert training_positives(folder, min_grade=2) == {"q1": {"d1": 2}}
    assert "1 of 2 judged queries have no document of grade 2" in caplog.text
    with pytest.raises(FileNotFoundError, match="the splits here are: train"):
        training_positives(folder, "dev")
