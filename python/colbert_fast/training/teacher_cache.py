"""Scores that a teacher has given, on disk."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

from colbert_fast.storage.documents import named_errors

__all__ = ["Pair", "ScoreCache"]

Pair = tuple[str, str]
"""A query's and a document's text."""

_APPLICATION_ID = 0x43465453  # "CFTS"
_SCHEMA_VERSION = 1
_BUSY_SECONDS = 60.0  # another process may be writing its window


class ScoreCache:
    """A SQLite file of scores by teacher, query and document; about 60 bytes a pair.

    Texts are known by 16 bytes of BLAKE2b, so one file serves every collection and every round.
    The key starts with teacher and query: a tuple's pairs lie together on disk.

    Raises
    ------
    ValueError
        There is such a file, and it is something else.
    OSError
        It cannot be opened, or another process has kept it locked.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_SECONDS)
        except sqlite3.OperationalError as error:
            raise OSError(f"{path}: the cache of teacher scores: {error}") from error
        try:
            self._open()
        except sqlite3.OperationalError as error:  # locked, read-only, a full disk
            self._connection.close()
            raise OSError(f"{path}: the cache of teacher scores: {error}") from error
        except (sqlite3.DatabaseError, ValueError) as error:
            self._connection.close()
            raise ValueError(f"{path}: not a cache of teacher scores ({error})") from error

    def _open(self) -> None:
        [(application,)] = self._connection.execute("PRAGMA application_id")
        [(version,)] = self._connection.execute("PRAGMA user_version")
        [(tables,)] = self._connection.execute("SELECT count(*) FROM sqlite_master")
        if tables and (application, version) != (_APPLICATION_ID, _SCHEMA_VERSION):
            raise ValueError("a database of something else, or of another version")
        self._connection.executescript(
            f"""
            BEGIN IMMEDIATE;
            PRAGMA application_id = {_APPLICATION_ID};
            PRAGMA user_version = {_SCHEMA_VERSION};
            CREATE TABLE IF NOT EXISTS teachers (number INTEGER PRIMARY KEY, fingerprint UNIQUE);
            CREATE TABLE IF NOT EXISTS scores (
                teacher INTEGER, query BLOB, document BLOB, score REAL NOT NULL,
                PRIMARY KEY (teacher, query, document)
            ) WITHOUT ROWID;
            COMMIT;
            """
        )

    def get(self, fingerprint: str, pairs: Iterable[Pair]) -> dict[Pair, float]:
        """The scores of those of `pairs` that this teacher has scored."""
        number, digests, found = self._number(fingerprint), _Digests(), {}
        for query, document in pairs:
            row = self._connection.execute(
                "SELECT score FROM scores WHERE teacher = ? AND query = ? AND document = ?",
                (number, digests[query], digests[document]),
            ).fetchone()
            if row is not None:
                found[query, document] = row[0]
        return found

    def put(self, fingerprint: str, scores: Mapping[Pair, float]) -> None:
        """Add scores: all of them, or none if the process is killed meanwhile."""
        number, digests = self._number(fingerprint), _Digests()
        rows = (
            (number, digests[query], digests[document], score)
            for (query, document), score in scores.items()
        )
        with named_errors(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", rows)
            self._connection.execute("COMMIT")

    def _number(self, fingerprint: str) -> int:
        query = "SELECT number FROM teachers WHERE fingerprint = ?"
        if self._connection.execute(query, (fingerprint,)).fetchone() is None:
            with named_errors(self._path):
                self._connection.execute(
                    "INSERT OR IGNORE INTO teachers (fingerprint) VALUES (?)", (fingerprint,)
                )
        [(number,)] = self._connection.execute(query, (fingerprint,))
        return int(number)

    def __enter__(self) -> ScoreCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


class _Digests(dict[str, bytes]):
    """Text to digest, each computed once."""

    def __missing__(self, text: str) -> bytes:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        self[text] = digest
        return digest
