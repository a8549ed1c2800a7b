"""The document store, and the forms in which documents may come."""

from __future__ import annotations

import enum
import json
import os
import signal
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest

from colbert_fast.corpus import read_corpus
from colbert_fast.errors import IndexFormatError
from colbert_fast.indexing.ingest import check_documents, read_documents
from colbert_fast.storage import documents as documents_module
from colbert_fast.storage.documents import Document, DocumentStore, DocumentWriter, sqlite_uri
from colbert_fast.storage.filters import read_filter

DOCUMENTS = [
    Document("a", "text of a", {"year": 1999, "tags": ["x", "ü"]}),
    Document(7, "seven", None),
    Document("7", None, None),
    Document(-(2**63), "", {"nested": {"deep": None}}),
    Document("quo'te; DROP TABLE documents", "日本語 \x00 null", None),
]


def write(path: Path, documents: list[Document]) -> DocumentStore:
    with DocumentWriter(path) as writer:
        for document in documents:
            writer.add(document)
        writer.close()
    return DocumentStore(path, len(documents))


@pytest.fixture
def store(tmp_path: Path) -> DocumentStore:
    return write(tmp_path / "documents.sqlite", DOCUMENTS)


def test_round_trip(store: DocumentStore) -> None:
    found = store.fetch([4, 0, 1, 3, 2, 0])
    assert [found[position] for position in range(5)] == DOCUMENTS
    assert store.read_ids() == [document.id for document in DOCUMENTS]
    assert [tuple(row[:2]) for row in store.rows()] == list(enumerate(store.read_ids()))
    assert store.fetch([]) == {}


def test_ids_keep_their_type(store: DocumentStore) -> None:
    assert store.find(["7", 7, "a", "x"]) == {"7": 2, 7: 1, "a": 0}
    assert [type(each) for each in store.read_ids()[:3]] == [str, int, str]


def test_more_documents_than_an_index_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents_module, "MAX_DOCUMENTS", 2)
    with DocumentWriter(tmp_path / "documents.sqlite") as writer:
        writer.add(DOCUMENTS[0])
        writer.add(DOCUMENTS[1])
        with pytest.raises(ValueError, match="document '7': an index holds at most 2 documents"):
            writer.add(DOCUMENTS[2])


def test_more_documents_than_variables_in_a_statement(tmp_path: Path) -> None:
    documents = [Document(f"d{i}", f"text {i}") for i in range(2500)]
    store = write(tmp_path / "documents.sqlite", documents)
    assert store.fetch(range(2500)) == dict(enumerate(documents))
    ids = [each.id for each in documents]
    assert store.find(reversed(ids)) == {each: position for position, each in enumerate(ids)}
    assert len(list(store.rows())) == 2500


def test_duplicate_ids_are_named(tmp_path: Path) -> None:
    with DocumentWriter(tmp_path / "documents.sqlite") as writer:
        writer.add(Document("same"))
        with pytest.raises(ValueError, match=r"ids must be unique: 'same'"):
            writer.add(Document("same"))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document("bad", "\ud800"), r"document 'bad': not valid Unicode"),
        (Document("bad", "x", {"array": np.zeros(2)}), r"document 'bad': its metadata cannot be"),
    ],
)
def test_what_cannot_be_stored_names_the_document(
    tmp_path: Path, document: Document, message: str
) -> None:
    with (
        DocumentWriter(tmp_path / "documents.sqlite") as writer,
        pytest.raises(ValueError, match=message),
    ):
        writer.add(document)


def test_a_full_disk_is_an_oserror(tmp_path: Path) -> None:
    path = tmp_path / "documents.sqlite"
    with DocumentWriter(path) as writer:
        writer._connection.execute("PRAGMA max_page_count = 8")
        with pytest.raises(OSError, match=r"SQLite: .*full.*documents\.sqlite"):
            writer.add(Document("large", "x" * 100_000))


def test_many_threads_read_one_store(store: DocumentStore) -> None:
    failures: list[bool] = []

    def read() -> None:
        failures.extend(store.fetch(range(5))[1] != DOCUMENTS[1] for _ in range(50))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) == 200
    assert not any(failures)


def test_versions(tmp_path: Path) -> None:
    path = tmp_path / "documents.sqlite"
    write(path, DOCUMENTS[:1])
    for version in (2, 3):
        set_version(path, version)
        assert DocumentStore(path, 1).read_ids() == ["a"]
    for version in (1, 4):
        set_version(path, version)
        with pytest.raises(IndexFormatError, match=rf"store version {version}; .* reads 2 and 3"):
            DocumentStore(path, 1)


def set_version(path: Path, version: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")


def test_foreign_and_damaged_files_are_named(tmp_path: Path, store: DocumentStore) -> None:
    with pytest.raises(IndexFormatError, match=r"other\.sqlite: no such file"):
        DocumentStore(tmp_path / "other.sqlite", 5)
    with pytest.raises(IndexFormatError, match=r"positions 0\.\.4, expected 0\.\.5"):
        DocumentStore(store.path, 6)

    (tmp_path / "garbage.sqlite").write_bytes(bytes(range(256)) * 100)
    with pytest.raises(IndexFormatError, match=r"garbage\.sqlite: cannot be read"):
        DocumentStore(tmp_path / "garbage.sqlite", 5)

    foreign = sqlite3.connect(tmp_path / "foreign.sqlite")
    foreign.execute("CREATE TABLE documents (pid, id)")
    foreign.close()
    with pytest.raises(IndexFormatError, match=r"foreign\.sqlite: not a document store"):
        DocumentStore(tmp_path / "foreign.sqlite", 5)

    (tmp_path / "cut.sqlite").write_bytes(store.path.read_bytes()[:5000])
    with pytest.raises(IndexFormatError, match=r"cut\.sqlite"):
        _ = DocumentStore(tmp_path / "cut.sqlite", 5).ids


def test_damaged_rows_are_named(store: DocumentStore) -> None:
    writer = sqlite3.connect(store.path)
    writer.execute("UPDATE documents SET metadata = '{' WHERE pid = 0")
    writer.execute("DELETE FROM documents WHERE pid = 2")
    writer.commit()
    writer.close()
    damaged = DocumentStore(store.path, len(DOCUMENTS))
    with pytest.raises(IndexFormatError, match=r"sqlite: the metadata of the document at 0 is"):
        damaged.fetch([0])
    with pytest.raises(IndexFormatError, match=r"sqlite: the document at 2 is missing"):
        damaged.fetch([1, 2])


def test_paths_with_odd_characters(tmp_path: Path) -> None:
    folder = tmp_path / "a b?c#d%20&é"
    folder.mkdir()
    assert write(folder / "documents.sqlite", DOCUMENTS).read_ids()[0] == "a"


def test_uris_as_sqlite_reads_them() -> None:
    assert sqlite_uri(PurePosixPath("/a b/c?#%.x")) == "file:///a%20b/c%3F%23%25.x"
    assert sqlite_uri(PureWindowsPath(r"C:\a\b")) == "file:///C:/a/b"
    assert sqlite_uri(PureWindowsPath(r"\\server\share\a")) == "file:////server/share/a"


def test_ids_are_read_without_the_texts(store: DocumentStore) -> None:
    [(*_, plan)] = store._query("EXPLAIN QUERY PLAN SELECT pid, id FROM documents ORDER BY id")
    assert "USING COVERING INDEX" in plan


def test_a_closed_store_says_so(store: DocumentStore) -> None:
    store.close()
    store.close()
    with pytest.raises(ValueError, match="the index is closed"):
        store.fetch([0])


def test_a_store_left_open_closes_itself(tmp_path: Path) -> None:
    store = write(tmp_path / "documents.sqlite", DOCUMENTS)
    connection = store._connection
    del store  # without a collection: until one came, files of old generations would stay open
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


ROWS = np.ones((2, 8), np.float32)


def test_every_form_of_a_document() -> None:
    given: list[Any] = [
        "plain",
        ("b", "pair"),
        {"id": "c", "text": "dict", "year": 1},
        {"text": "no id"},
        ROWS,
        (9, ROWS),
        {"embeddings": ROWS, "text": "both"},
    ]
    read = list(read_documents(iter(given)))
    assert [each.id for each in read] == [0, "b", "c", 3, 4, 9, 10]
    assert [each.text for each in read] == [
        "plain", "pair", "dict", "no id", None, None, "both",
    ]  # fmt: skip
    assert read[2].metadata == {"year": 1}
    assert [each.embeddings is ROWS for each in read] == [False] * 4 + [True] * 3


def test_files_that_cannot_be_made_or_have_just_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match=r"SQLite: .*'.*gone.a\.sqlite'"):
        DocumentWriter(tmp_path / "gone" / "a.sqlite")
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    with pytest.raises(IndexFormatError, match=r"b\.sqlite: unable to open"):
        DocumentStore(tmp_path / "b.sqlite", 1)


def test_records_of_beir_are_read_as_from_their_file(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"_id": "a", "title": "Sky", "text": "It is blue.", "year": 1999},
        {"_id": 7, "title": "", "text": "Rain."},
    ]
    lines = "".join(json.dumps(each) + "\n" for each in records)
    (tmp_path / "corpus.jsonl").write_text(lines, encoding="utf-8")
    read = list(read_documents(records))
    assert read == list(read_documents(read_corpus(tmp_path)))
    assert (read[0].id, read[0].text) == ("a", "Sky It is blue.")
    [plain] = read_documents([{"id": 1, "title": "Sky", "text": "It is blue."}])
    assert (plain.text, plain.metadata) == ("It is blue.", {"title": "Sky"})
    [rows] = read_documents([{"_id": "a", "title": "Sky", "embeddings": ROWS}])
    assert (rows.id, rows.text) == ("a", None)


def test_given_ids() -> None:
    read = read_documents(["x", "y"], iter([np.int32(5), "b"]))
    assert [each.id for each in read] == [5, "b"]
    assert list(read_documents([], [])) == []


@pytest.mark.parametrize(
    ("documents", "ids", "error", "message"),
    [
        (["x", "y"], ["a"], ValueError, r"ids: 1 given, but there are more documents"),
        (["x"], ["a", "b"], ValueError, r"ids: more than the 1 documents; the next is 'b'"),
        ([("a", "x")], ["b"], ValueError, r"document 0 already carries the id 'a'"),
        ([3], None, TypeError, r"documents\[0\]: expected a text, .* got int"),
        (["x", None], None, TypeError, r"documents\[1\]: .* got NoneType"),
        ([[1.0, 2.0]], None, TypeError, r"documents\[0\]: .* got list"),
        ([("a", "b", "c")], None, ValueError, r"documents\[0\]: a tuple must be .* got 3"),
        ([(None, "b")], None, TypeError, r"documents\[0\]: the id is None"),
        ([{"id": 1}], None, ValueError, r'documents\[0\]: a dict needs "text" or "embeddings"'),
        ([{"text": 1}], None, TypeError, r'documents\[0\]: "text" must be a str, got int'),
        (["x"], [True], TypeError, r"ids\[0\]: an id must be a str or an int, got bool"),
        (["x"], [2**63], ValueError, r"ids\[0\]: 9223372036854775808 does not fit"),
        (["x"], [1.0], TypeError, r"ids\[0\]: .* got float"),
    ],
)
def test_forms_that_are_refused(
    documents: Any, ids: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        list(read_documents(iter(documents), None if ids is None else iter(ids)))
    with pytest.raises(error, match=message):
        check_documents(documents, ids)


def test_lists_are_checked_for_duplicates_at_once() -> None:
    with pytest.raises(ValueError, match=r"ids must be unique: 'a'"):
        check_documents([("a", "x"), ("b", "y"), ("a", "z")], None)
    with pytest.raises(ValueError, match=r"ids must be unique: 1"):
        check_documents([("a", "x"), "y", (1, "z")], None)
    check_documents(iter([("a", "x"), ("a", "z")]), None)  # read while building
    check_documents([(1, "x"), "y"], None)


def test_documents_without_an_id_are_numbered_on() -> None:
    given: list[Any] = ["x", (13, "y"), "z", (2, "u"), "v"]
    read = read_documents(given, first_id=12)
    assert [each.id for each in read] == [12, 13, 14, 2, 16]
    check_documents(given, None, first_id=12)
    with pytest.raises(ValueError, match=r"ids must be unique: 12"):
        check_documents(["x", (12, "y")], None, first_id=12)


class Named(str, enum.Enum):
    A = "a"


def test_ids_of_an_enumeration_are_its_values() -> None:
    [read] = read_documents([(Named.A, "x")])
    assert (read.id, type(read.id)) == ("a", str)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_waits_for_threads_that_read(store: DocumentStore) -> None:
    reading = threading.Event()

    def read() -> None:
        with store._lock, store.fields._lock:
            reading.set()
            time.sleep(0.2)

    thread = threading.Thread(target=read)
    thread.start()
    reading.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        found = store.fetch([1])[1]
        positions = store.fields.positions(read_filter("year = 1999"), ["year"])
        os._exit(0 if found == DOCUMENTS[1] and positions.tolist() == [0] else 1)
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
    assert store.fetch([1])[1] == DOCUMENTS[1]
