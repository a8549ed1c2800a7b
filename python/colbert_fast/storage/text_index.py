"""The words of the stored texts, for BM25: which documents hold a word, and how often.

SQLite's full-text index FTS5 splits texts into words and stems them (Porter), for documents and
queries alike. What it finds is kept as arrays: adding those up takes a hundredth of the time that
FTS5's own ranking does, and gives every document a score, so that filters and deletions apply
before the best are chosen.

Tables: ``postings (term, block, data)`` and ``lengths (block, data)``, in blocks of 65,536
documents. `data` is uint16 positions within the block, then a uint8 count each (255 for more); or
the uint32 numbers of words of the block's documents. All little-endian. Both tables are empty
where no document has a text.
"""

from __future__ import annotations

import functools
import itertools
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from colbert_fast.errors import IndexFormatError

__all__ = ["Postings", "TextIndex", "count_terms", "write_text_index"]

_BLOCK = 1 << 16
_CHARACTERS = 1 << 25  # of texts split together, so many that a block of passages is one part
_MOST = 255  # a count beyond this changes a BM25 score by half a percent at most
_BATCH = 500  # below SQLite's smallest limit on bound variables (999)
_CACHE_KIB = 65536

Query = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]
"""Runs a statement on a store and returns its rows."""


class Postings(NamedTuple):
    """The documents of one store that hold a word.

    Attributes
    ----------
    positions : int64 (n,), ascending
    counts : uint8 (n,)
    """

    positions: npt.NDArray[np.int64]
    counts: npt.NDArray[np.uint8]


def write_text_index(connection: sqlite3.Connection) -> None:
    """Add the tables for the texts of ``documents (pid, id, text, ...)``; empty without texts."""
    connection.execute(
        "CREATE TABLE postings (term TEXT, block INTEGER, data BLOB, PRIMARY KEY (term, block))"
        " WITHOUT ROWID"
    )
    connection.execute("CREATE TABLE lengths (block INTEGER PRIMARY KEY, data BLOB)")
    [(some,)] = connection.execute("SELECT EXISTS (SELECT * FROM documents WHERE text IS NOT NULL)")
    if not some:
        return
    connection.create_function("joined", 2, _joined)
    [(count,)] = connection.execute("SELECT count(*) FROM documents")
    for block, start in enumerate(range(0, count, _BLOCK)):
        lengths = np.zeros(min(_BLOCK, count - start), np.uint32)
        texts = connection.execute(
            "SELECT pid - ?, text FROM documents WHERE pid >= ? AND pid < ? AND text IS NOT NULL",
            (start, start, start + _BLOCK),
        )
        for part in _parts(texts):
            connection.executemany(
                "INSERT INTO postings VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET data = joined(data, excluded.data)",
                ((term, block, _pack(found, lengths)) for term, found in _terms(part)),
            )
        connection.execute("INSERT INTO lengths VALUES (?, ?)", (block, lengths.tobytes()))


def count_terms(texts: Sequence[str]) -> list[Counter[str]]:
    """How often each word is in each text, stemmed as those of the documents are."""
    counts: list[Counter[str]] = [Counter() for _ in texts]
    for term, found in _terms(enumerate(texts)):
        for place, count in found.items():
            counts[place][term] = count
    return counts


class TextIndex:
    """The words of one store's texts.

    Parameters
    ----------
    query
        Runs a statement on the store.
    path
        Of the store, for error messages.
    num_documents
        How many it holds.
    """

    def __init__(self, query: Query, path: Path, num_documents: int) -> None:
        self._query = query
        self._path = path
        self.num_documents = num_documents

    @functools.cached_property
    def lengths(self) -> npt.NDArray[np.uint32]:
        """The number of words of each document: uint32 (num_documents,).

        Raises
        ------
        IndexFormatError
            There are not that many.
        """
        rows = self._query("SELECT data FROM lengths ORDER BY block", ())
        if not rows and not self._query("SELECT term FROM postings LIMIT 1", ()):
            return np.zeros(self.num_documents, np.uint32)
        data = b"".join(row[0] for row in rows if isinstance(row[0], bytes))
        if len(data) != 4 * self.num_documents:
            raise IndexFormatError(
                f"{self._path}: {len(data)} bytes of text lengths, for {self.num_documents} "
                "documents"
            )
        return np.frombuffer(data, "<u4")

    def postings(self, terms: Iterable[str]) -> dict[str, Postings]:
        """The documents that hold each of `terms`; words that are in none are left out.

        Raises
        ------
        IndexFormatError
            What is stored cannot be.
        """
        found: dict[str, list[Postings]] = {}
        wanted = iter(sorted(set(terms)))
        while batch := list(itertools.islice(wanted, _BATCH)):
            marks = ",".join("?" * len(batch))
            statement = f"SELECT * FROM postings WHERE term IN ({marks}) ORDER BY term, block"
            for term, block, data in self._query(statement, batch):
                found.setdefault(term, []).append(self._unpack(block, data))
        return {
            term: Postings(*map(np.concatenate, zip(*each, strict=True)))
            for term, each in found.items()
        }

    def _unpack(self, block: Any, data: Any) -> Postings:
        blocks = -(-self.num_documents // _BLOCK)
        if not (isinstance(data, bytes) and isinstance(block, int) and 0 <= block < blocks):
            raise IndexFormatError(f"{self._path}: damaged postings of a word")
        n = len(data) // 3
        positions = np.frombuffer(data, "<u2", n).astype(np.int64) + block * _BLOCK
        if (
            n == 0
            or len(data) != 3 * n
            or positions[-1] >= self.num_documents
            or (positions[1:] <= positions[:-1]).any()
        ):
            raise IndexFormatError(f"{self._path}: damaged postings of a word in block {block}")
        return Postings(positions, np.frombuffer(data, np.uint8, offset=2 * n))


def _parts(texts: Iterator[tuple[int, str]]) -> Iterator[Iterator[tuple[int, str]]]:
    """The texts in parts of a bounded length, or of one text; each is to be read to its end."""
    for first in texts:
        yield _part(itertools.chain([first], texts))


def _part(texts: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    characters = 0
    for number, text in texts:
        yield number, text
        characters += len(text)
        if characters >= _CHARACTERS:
            return


def _terms(texts: Iterable[tuple[int, str]]) -> Iterator[tuple[str, Counter[int]]]:
    """Each word with the numbers of its texts, ascending, and how often it is in each."""
    with closing(sqlite3.connect("", isolation_level=None)) as words:  # a file that nobody sees
        words.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        words.execute("PRAGMA journal_mode = OFF")
        words.execute("BEGIN")
        words.execute(
            "CREATE VIRTUAL TABLE words USING fts5"
            "(text, content='', tokenize='porter unicode61 remove_diacritics 2')"
        )
        words.execute("CREATE VIRTUAL TABLE places USING fts5vocab(words, instance)")
        words.executemany("INSERT INTO words (rowid, text) VALUES (?, ?)", texts)
        # A row per word, not per occurrence or document: it is rows that cost time (a factor of 2).
        rows = words.execute("SELECT term, group_concat(doc) FROM places GROUP BY term")
        for term, places in rows:
            yield term, Counter(map(int, places.split(",")))


def _pack(found: Counter[int], lengths: npt.NDArray[np.uint32]) -> bytes:
    """The documents of a word as stored; they are added to `lengths`."""
    positions = np.fromiter(found, "<u2", len(found))
    counts = np.fromiter(found.values(), np.uint32, len(found))
    lengths[positions] += counts
    return positions.tobytes() + np.minimum(counts, _MOST).astype(np.uint8).tobytes()


def _joined(first: bytes, second: bytes) -> bytes:
    """The postings of a word in two parts of a block."""
    n, m = len(first) // 3, len(second) // 3
    return first[: 2 * n] + second[: 2 * m] + first[2 * n :] + second[2 * m :]
