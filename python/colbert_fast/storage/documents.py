"""The document store: external ids, texts and metadata in one SQLite file."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import itertools
import json
import operator
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

from colbert_fast.errors import IndexFormatError
from colbert_fast.storage.filters import FieldTable, is_unicode, write_fields
from colbert_fast.storage.forks import lock_over_forks
from colbert_fast.storage.manifest import MAX_DOCUMENTS
from colbert_fast.storage.text_index import TextIndex, write_text_index

__all__ = [
    "Document",
    "DocumentId",
    "DocumentStore",
    "DocumentWriter",
    "check_id",
    "check_many",
    "named_errors",
]

DocumentId = str | int

_APPLICATION_ID = 0x434F4C42  # "COLB": tells our file from any other SQLite database
# 2: with lengths and rows of fields even where no document has a text or metadata.
_SCHEMA_VERSION, _READ_VERSIONS = 3, (2, 3)
_BATCH = 500  # below SQLite's smallest limit on bound variables (999)


@dataclasses.dataclass(frozen=True)
class Document:
    """One document: `embeddings` is an array-like (tokens, dim), or None if there is only text."""

    id: DocumentId
    text: str | None = None
    metadata: Mapping[str, Any] | None = None
    embeddings: Any = None


def check_id(value: Any, position: int, *, name: str = "ids") -> DocumentId:
    """A plain str or int for `value`, the id at `position` of those given (NumPy scalars too).

    `name` is the argument that errors speak of.
    """
    if isinstance(value, str):
        return str.__str__(value)  # not what a subclass, as an enumeration, makes of it
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(
            f"{name}[{position}]: an id must be a str or an int, got {type(value).__name__}"
        )
    number = operator.index(value)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name}[{position}]: {number} does not fit in 64 bits")
    return number


def check_many(name: str, value: object) -> None:
    """Raise TypeError if `value` is one thing, or one that iterates over its keys or columns."""
    if not callable(getattr(value, "columns", len)):  # of a table; rows of SQL have a method
        raise TypeError(
            f"{name}: a {type(value).__name__} iterates over its columns; pass its rows as dicts "
            '(in pandas df.to_dict("records"))'
        )
    if isinstance(value, (str, bytes, os.PathLike, Mapping)):
        mend = "; read_corpus(path) reads a file, a mapping of ids to texts has items()"
        raise TypeError(
            f"{name} must be an iterable of many, got one {type(value).__name__}"
            f"{mend if name == 'documents' else ''}"
        )


class DocumentWriter:
    """Write documents.sqlite in one pass and one transaction.

    There is no journal: the file lies in a folder that is thrown away if anything fails. `next_id`
    is one above the largest number among the ids, and at least 0.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self.next_id = 0
        with named_errors(path):
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            weakref.finalize(self, self._connection.close)
            self._connection.executescript(
                f"""
                PRAGMA page_size = 4096;
                PRAGMA journal_mode = OFF;
                PRAGMA synchronous = OFF;
                PRAGMA locking_mode = EXCLUSIVE;
                PRAGMA application_id = {_APPLICATION_ID};
                PRAGMA user_version = {_SCHEMA_VERSION};
                CREATE TABLE documents (
                    pid INTEGER PRIMARY KEY, id NOT NULL UNIQUE, text TEXT, metadata TEXT
                );
                BEGIN;
                """
            )

    def add(self, document: Document) -> None:
        """Append one document under the next position.

        Raises
        ------
        ValueError
            The id is already there, or text or metadata cannot be stored; the message names the id.
            Or there are 2**31 - 1 documents already.
        """
        metadata = _dump_metadata(document)
        self._insert((self.count, document.id, document.text, metadata))

    def add_rows(self, rows: Iterable[Sequence[Any]]) -> None:
        """Append rows of other stores, (pid, id, text, metadata) each, under the next positions."""
        for _, *row in rows:
            self._insert((self.count, *row))

    def _insert(self, row: tuple[Any, ...]) -> None:
        if self.count >= MAX_DOCUMENTS:
            raise ValueError(
                f"document {row[1]!r}: an index holds at most {MAX_DOCUMENTS} documents; "
                "build several"
            )
        try:
            with named_errors(self.path):
                self._connection.execute("INSERT INTO documents VALUES (?, ?, ?, ?)", row)
        except sqlite3.IntegrityError:
            raise ValueError(
                f"ids must be unique: {row[1]!r} is the id of more than one document"
            ) from None
        except UnicodeEncodeError as error:
            raise ValueError(f"document {row[1]!r}: not valid Unicode ({error})") from error
        self.count += 1
        if isinstance(row[1], int):
            self.next_id = max(self.next_id, row[1] + 1)

    def id_of(self, position: int) -> DocumentId:
        """The id written at `position`, for error messages."""
        query = "SELECT id FROM documents WHERE pid = ?"
        found: DocumentId = self._connection.execute(query, (position,)).fetchone()[0]
        return found

    def close(self) -> None:
        """Add what filters and BM25 read, commit and close."""
        with named_errors(self.path):
            write_fields(self._connection)
            write_text_index(self._connection)
            self._connection.execute("COMMIT")
        self._connection.close()

    def __enter__(self) -> DocumentWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def _dump_metadata(document: Document) -> str | None:
    if not document.metadata:
        return None
    try:
        return json.dumps(dict(document.metadata), ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"document {document.id!r}: its metadata cannot be written as JSON ({error})"
        ) from error


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's own failures (a full disk among them) into an OSError with the file's name."""
    try:
        yield
    except sqlite3.OperationalError as error:
        code = errno.ENOSPC if "full" in str(error) else errno.EIO
        raise OSError(code, f"SQLite: {error}", str(path)) from error


class DocumentStore:
    """Read documents.sqlite; safe to share between threads.

    Parameters
    ----------
    path
        The file. It is opened read-only and as immutable: no lock, no journal, no side file.
    num_documents
        How many documents it must hold.

    Attributes
    ----------
    fields
        The metadata, for filters.
    texts
        The words of the texts, for BM25.

    Raises
    ------
    IndexFormatError
        The file is missing, foreign or damaged; named.
    """

    def __init__(self, path: Path, num_documents: int) -> None:
        self.path = path
        self._lock = lock_over_forks()
        if not path.is_file():
            raise IndexFormatError(f"{path}: no such file")
        uri = f"{sqlite_uri(path.resolve())}?mode=ro&immutable=1"
        self._connection = _connect(uri, path)
        weakref.finalize(self, self._connection.close)
        # No method: what holds the store in turn would keep its file open until a collection.
        self._query = functools.partial(_query, self._connection, self._lock, path)
        self._check(num_documents)
        self.texts = TextIndex(self._query, path, num_documents)
        self.fields = FieldTable(_connect(uri, path), path, num_documents)

    def _check(self, num_documents: int) -> None:
        [(application,)] = self._query("PRAGMA application_id")
        [(version,)] = self._query("PRAGMA user_version")
        if application != _APPLICATION_ID:
            raise IndexFormatError(f"{self.path}: not a document store of this library")
        if version not in _READ_VERSIONS:
            raise IndexFormatError(
                f"{self.path}: document store version {version}; this version of colbert-fast "
                f"reads {' and '.join(map(str, _READ_VERSIONS))}"
            )
        # One SELECT with both would read the whole table; each alone is a look-up.
        [(first, last)] = self._query(
            "SELECT (SELECT min(pid) FROM documents), (SELECT max(pid) FROM documents)"
        )
        if (first, last) != (0, num_documents - 1):
            raise IndexFormatError(
                f"{self.path}: positions {first}..{last}, expected 0..{num_documents - 1}"
            )

    def fetch(self, positions: Iterable[int]) -> dict[int, Document]:
        """Position to document, for the positions given (int, 0-based).

        Raises
        ------
        IndexFormatError
            A document is missing or damaged.
        """
        found: dict[int, Document] = {}
        for batch in _batches(positions):
            marks = ",".join("?" * len(batch))
            for pid, *row in self._query(f"SELECT * FROM documents WHERE pid IN ({marks})", batch):
                if not (isinstance(row[0], (str, int)) and isinstance(row[1], (str, type(None)))):
                    raise IndexFormatError(f"{self.path}: the document at {pid} is damaged")
                found[pid] = Document(row[0], row[1], self._metadata(pid, row[2]))
            for pid in batch:
                if pid not in found:
                    raise IndexFormatError(f"{self.path}: the document at {pid} is missing")
        return found

    def _metadata(self, position: int, text: str | None) -> dict[str, Any] | None:
        if text is None:
            return None
        try:
            metadata: dict[str, Any] = json.loads(text)
            if not isinstance(metadata, dict):
                raise ValueError("not an object")
        except (TypeError, ValueError, RecursionError) as error:
            raise IndexFormatError(
                f"{self.path}: the metadata of the document at {position} is damaged ({error})"
            ) from error
        return metadata

    def find(self, ids: Iterable[DocumentId]) -> dict[DocumentId, int]:
        """The positions of those of `ids` that are here."""
        found: dict[DocumentId, int] = {}
        for batch in _batches(each for each in ids if is_unicode(str(each))):  # text is UTF-8 there
            marks = ",".join("?" * len(batch))
            found.update(self._query(f"SELECT id, pid FROM documents WHERE id IN ({marks})", batch))
        return found

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """(pid, id, text, metadata) of all documents, by position."""
        for start in itertools.count(0, _BATCH):
            rows = self._query(
                "SELECT * FROM documents WHERE pid BETWEEN ? AND ? ORDER BY pid",
                (start, start + _BATCH - 1),
            )
            if not rows:
                return
            yield from rows

    def read_ids(self) -> list[DocumentId]:
        """All ids by position."""
        # The index on ids holds all that is asked for: no page of texts is read.
        by_position = dict(self._query("SELECT pid, id FROM documents ORDER BY id"))
        ids: list[Any] = [by_position.get(position) for position in range(len(by_position))]
        if not all(isinstance(each, (str, int)) for each in ids):
            raise IndexFormatError(f"{self.path}: ids are missing or damaged")
        return ids

    def close(self) -> None:
        """Close the file; any later read raises ValueError."""
        self.fields.close()
        with self._lock:
            self._connection.close()


def _connect(uri: str, path: Path) -> sqlite3.Connection:
    """The file, opened to read; it may have been removed since it was seen."""
    try:
        return sqlite3.connect(uri, uri=True, check_same_thread=False)
    except sqlite3.OperationalError as error:
        raise IndexFormatError(f"{path}: {error}") from error


def _query(
    connection: sqlite3.Connection,
    lock: threading.Lock,
    path: Path,
    statement: str,
    arguments: Sequence[Any] = (),
) -> list[tuple[Any, ...]]:
    try:
        with lock:
            return connection.execute(statement, arguments).fetchall()
    except sqlite3.ProgrammingError:
        raise ValueError("the index is closed") from None
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise IndexFormatError(f"{path}: cannot be read ({error})") from error


def sqlite_uri(path: PurePath) -> str:
    """``file:`` URI of an absolute path, as SQLite reads it.

    `Path.as_uri` makes the server of a Windows share the URI's authority, which SQLite refuses: it
    wants the authority empty and both slashes in the path.
    """
    posix = path.as_posix()
    return "file://" + quote(os.fsencode(posix if posix[0] == "/" else f"/{posix}"), safe="/:")


def _batches(values: Iterable[Any]) -> Iterator[list[Any]]:
    unique = list(dict.fromkeys(values))
    for start in range(0, len(unique), _BATCH):
        yield unique[start : start + _BATCH]
