"""Conditions on metadata: SQL expressions, of which SQLite may run only what is harmless.

A store keeps metadata as JSON. `write_fields` unfolds it into a column per key, over which a filter
runs ten times as fast as over JSON. Expressions may come from strangers: they are looked through
before SQLite sees them, and SQLite is told to read no more than those columns and to call nothing
but functions of single values.
"""

from __future__ import annotations

import functools
import json
import re
import sqlite3
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from colbert_fast.errors import IndexFormatError
from colbert_fast.storage.forks import lock_over_forks

__all__ = [
    "Condition",
    "FieldTable",
    "Filter",
    "is_unicode",
    "matching",
    "read_filter",
    "write_fields",
]

Filter = str | tuple[str, Sequence[Any] | Mapping[str, Any]]
"""An SQL expression, alone or with the values of its ``?`` or ``:name``."""

_MAX_COLUMNS = 1000  # SQLite takes 2,000 as it is commonly built
_BATCH = 1000
_MAX_NAMED = 20
_MAX_SHOWN = 200
_STEPS = 100_000  # of SQLite's machine between two looks at the clock: a few milliseconds
# A comparison takes 1e-7 seconds per document.
_SECONDS, _SECONDS_PER_DOCUMENT = 5.0, 1e-5
_PID = "position of the document"  # no key that anyone would ask for by accident

# fmt: off
_FUNCTIONS = frozenset((
    "->", "->>", "abs", "coalesce", "date", "datetime", "glob", "ifnull", "iif", "instr",
    "json_array_length", "json_extract", "json_type", "julianday", "length", "like", "lower",
    "ltrim", "max", "min", "nullif", "round", "rtrim", "strftime", "substr", "substring", "time",
    "trim", "typeof", "unicode", "upper",
))
# fmt: on
_ROW_IDS = frozenset(("rowid", "oid", "_rowid_"))  # columns that SQLite adds to every table
_NOT_KEYS = _ROW_IDS | {_PID}
_STATEMENTS = frozenset(("select", "values", "with"))
# As SQLite splits it: every character beyond ASCII, a space among them, may be in a name.
_TOKEN = re.compile(
    r"""[\ \t\n\f\r]+ | '(?:[^']|'')*' | [0-9][\w.]*
    | (?P<quoted>"(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\])
    | (?P<word>[A-Za-z_\u0080-\U0010ffff][\w$\u0080-\U0010ffff]*)
    | (?P<named>:[\w\u0080-\U0010ffff]+)
    | (?P<refused>-- | /\* | [;@$'"`\[\#] | \?\d+)
    | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def write_fields(connection: sqlite3.Connection) -> None:
    """Unfold metadata into the tables ``keys (place, name)`` and ``fields (pid, c0, c1 ...)``.

    The first 1,000 keys that occur get a column each. Lists and objects become JSON text, true and
    false 1 and 0; a document without the key has NULL. Both tables are empty where no document
    has metadata.
    """
    connection.execute("CREATE TABLE keys (place INTEGER PRIMARY KEY, name TEXT NOT NULL)")
    connection.execute("CREATE TABLE fields (pid INTEGER PRIMARY KEY)")
    [(some,)] = connection.execute(
        "SELECT EXISTS (SELECT * FROM documents WHERE metadata IS NOT NULL)"
    )
    if not some:
        return
    places: dict[str, int] = {}
    for batch in _metadata(connection):
        for name in dict.fromkeys(name for _, metadata in batch for name in metadata):
            if name not in places:
                places[name] = len(places)
                connection.execute("INSERT INTO keys VALUES (?, ?)", (places[name], name))
                if places[name] < _MAX_COLUMNS:
                    connection.execute(f"ALTER TABLE fields ADD COLUMN c{places[name]}")
        columns = list(places)[:_MAX_COLUMNS]
        marks = ",".join("?" * (1 + len(columns)))
        connection.executemany(
            f"INSERT INTO fields VALUES ({marks})",
            [(pid, *(_plain(metadata.get(name)) for name in columns)) for pid, metadata in batch],
        )


def _metadata(connection: sqlite3.Connection) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """In batches, because a table cannot get a column while a statement is being read."""
    [(count,)] = connection.execute("SELECT count(*) FROM documents")
    for start in range(0, count, _BATCH):
        rows = connection.execute(
            "SELECT pid, metadata FROM documents WHERE pid >= ? AND pid < ? ORDER BY pid",
            (start, start + _BATCH),
        ).fetchall()
        yield [(pid, {} if text is None else json.loads(text)) for pid, text in rows]


def _plain(value: Any) -> Any:
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return float(str(value))  # infinite where float(value) would fail
    return value


class Condition(NamedTuple):
    """A filter that was looked through; see `read_filter`."""

    expression: str
    values: Sequence[Any] | Mapping[str, Any]
    words: frozenset[str]
    """Everything in the expression that may be a key, in lower case."""
    quoted: tuple[str, ...]
    """What stands in double quotes: SQLite would take it for a text if it were no key."""
    elsewhere: tuple[str, ...] = ()
    """Keys of other indexes that are searched as well: here they are NULL, not unknown."""


def read_filter(filter: Any) -> Condition:  # noqa: A002
    """Check a `Filter`, as far as that can be done without knowing the keys; once is enough.

    Raises
    ------
    TypeError, ValueError
        It is neither an expression nor one with values; the values are of no type that metadata
        has, or not as many as the expression has places for; or the expression holds a sub-select,
        a comment, a ``;``, an open quote, or parentheses that do not match.
    """
    if isinstance(filter, Condition):
        return filter
    expression, values = filter if isinstance(filter, tuple) and len(filter) == 2 else (filter, ())
    if not isinstance(expression, str):
        raise TypeError(
            "filter: expected an SQL expression such as \"year >= 2020 and lang = 'de'\", or "
            f"(expression, values), got {type(filter).__name__}"
        )
    if "\0" in expression or not is_unicode(expression):
        raise ValueError(f"filter: not a text that SQL can hold: {_shown(expression)}")
    words: set[str] = set()
    quoted: list[str] = []
    names: list[str] = []
    depth = marks = 0
    for token in _TOKEN.finditer(expression):
        kind, text = token.lastgroup, token.group()
        if kind == "refused" or (kind == "word" and text.lower() in _STATEMENTS):
            raise ValueError(
                f"filter: {text!r} at {token.start()} is not allowed: {_shown(expression)}"
            )
        if kind == "word":
            words.add(_fold(text))
        elif kind == "quoted":
            name = text[1:-1].replace(text[-1] * 2, text[-1])
            words.add(_fold(name))
            if text[0] == '"':
                quoted.append(name)
        elif kind == "named":
            names.append(text[1:])
        elif kind == "other":
            marks += text == "?"
            depth += (text == "(") - (text == ")")
            if depth < 0:
                break
    if depth != 0 or not expression.strip():
        what = "parentheses do not match" if depth else "the expression is empty"
        raise ValueError(f"filter: {what}: {_shown(expression)}")
    return Condition(expression, _values(values, marks, names), frozenset(words), tuple(quoted))


def _values(values: Any, marks: int, names: list[str]) -> Sequence[Any] | Mapping[str, Any]:
    if isinstance(values, Mapping):
        missing = [name for name in names if name not in values]
        if marks or missing:
            what = f"no value for :{missing[0]}" if missing else "a dict of values, but a `?`"
            raise ValueError(f"filter: {what} in the expression")
        return {name: _value(f":{name}", values[name]) for name in names}
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"filter: values must be a list or a dict, got {type(values).__name__}")
    if names or len(values) != marks:
        what = (
            f"a list of values, but :{names[0]}" if names else f"{len(values)} values, {marks} `?`"
        )
        raise ValueError(f"filter: {what} in the expression")
    return [_value(f"value {place}", value) for place, value in enumerate(values)]


def _value(name: str, value: Any) -> str | int | float | None:
    plain = value.item() if isinstance(value, np.generic) else value
    if plain is not None and not isinstance(plain, (str, int, float)):
        raise TypeError(
            f"filter: {name} must be a str, a number, a bool or None, got {type(value).__name__}"
        )
    if isinstance(plain, str) and not is_unicode(plain):
        raise ValueError(f"filter: {name} is not valid Unicode")
    if isinstance(plain, int) and not -(2**63) <= plain < 2**63:
        raise ValueError(f"filter: {name}: {plain} does not fit in 64 bits")
    return plain


class FieldTable:
    """The metadata of one store, for filters; safe to share between threads.

    Parameters
    ----------
    connection
        A read-only connection of its own, which is guarded from here on and closed in the end.
    path
        Of the file, for error messages.
    num_documents
        How many there are.

    Raises
    ------
    IndexFormatError
        The file has no such tables, or is damaged.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, num_documents: int) -> None:
        self.path = path
        self.num_documents = num_documents
        self._connection = connection
        weakref.finalize(self, connection.close)
        self._lock = lock_over_forks()
        self.seconds = _SECONDS + _SECONDS_PER_DOCUMENT * num_documents
        try:
            connection.execute("PRAGMA query_only = ON")
            self.places: dict[str, int] = dict(
                connection.execute("SELECT name, place FROM keys ORDER BY place")
            )
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise IndexFormatError(f"{path}: cannot be read ({error})") from error
        # SQLite lets anything be in any column, and the places become part of statements.
        if not all(isinstance(key, str) and type(at) is int for key, at in self.places.items()):
            raise IndexFormatError(f"{path}: the table of metadata keys is damaged")
        readable = "fields" if self.places else None
        connection.set_authorizer(functools.partial(_authorize, readable))

    def positions(self, condition: Condition, keys: Iterable[str]) -> npt.NDArray[np.int64]:
        """The positions (n,), ascending, where the condition is true.

        `keys` are those that the condition may speak of; the ones that are not here are NULL.
        """
        names: dict[str, list[str]] = {}
        for key in keys:
            names.setdefault(_fold(key), [])
            if key in self.places:
                names[_fold(key)].append(key)
        columns = "".join(
            f", {self._column(here)} AS {_quote(name)}" for name, here in names.items()
        )
        # Where no document has metadata, one row stands for all.
        source, position = ("FROM fields", "pid") if self.places else ("", "0")
        # The line breaks end a comment, should one have been overlooked.
        statement = (
            f"SELECT {_quote(_PID)} FROM (SELECT {position} AS {_quote(_PID)}{columns} {source})"
            f" WHERE (\n{condition.expression}\n)"
        )
        with self._lock:
            deadline = time.monotonic() + self.seconds
            self._connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
            try:
                rows = self._connection.execute(statement, condition.values)
                found = np.sort(np.fromiter((pid for (pid,) in rows), np.int64))
            finally:
                self._connection.set_progress_handler(None, 0)
        if len(found) and not self.places:
            return np.arange(self.num_documents, dtype=np.int64)
        if len(found) and not 0 <= found[0] <= found[-1] < self.num_documents:
            raise IndexFormatError(
                f"{self.path}: metadata of documents outside 0..{self.num_documents - 1}"
            )
        return found

    def _column(self, keys: Sequence[str]) -> str:
        """The value of keys that are the same but for case, as names are to SQL."""
        for key in keys:
            if self.places[key] >= _MAX_COLUMNS:
                raise ValueError(
                    f"filter: {key!r} is not among the first {_MAX_COLUMNS} metadata keys, which "
                    "are those that filters can use"
                )
        columns = ", ".join(f"c{self.places[key]}" for key in keys)
        return columns if len(keys) == 1 else f"coalesce({columns})" if keys else "NULL"

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()


def matching(tables: Sequence[FieldTable], condition: Condition) -> list[npt.NDArray[np.int64]]:
    """For each table the positions (n,), ascending, where the condition is true.

    Raises
    ------
    ValueError
        The condition is no SQL expression over the keys of these tables, calls a function that
        filters may not use, or runs too long.
    IndexFormatError
        A file is damaged.
    """
    here = (name for table in tables for name in table.places)
    known = list(dict.fromkeys((*here, *condition.elsewhere)))
    folded = {_fold(name) for name in known}
    for name in (*condition.quoted, *sorted(condition.words & _NOT_KEYS)):
        if _fold(name) not in folded:
            raise ValueError(_unknown(name, known))
    keys = [name for name in known if _fold(name) in condition.words]
    return [_matching(table, condition, keys, known) for table in tables]


def _matching(
    table: FieldTable, condition: Condition, keys: Sequence[str], known: Sequence[str]
) -> npt.NDArray[np.int64]:
    try:
        return table.positions(condition, keys)
    except sqlite3.ProgrammingError:
        raise ValueError("the index is closed") from None
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise _explained(error, table, condition, known) from error


def _explained(
    error: Exception, table: FieldTable, condition: Condition, known: Sequence[str]
) -> Exception:
    message, shown = str(error), _shown(condition.expression)
    if message.startswith("no such column: "):
        return ValueError(_unknown(message.removeprefix("no such column: "), known))
    if message == "interrupted":
        return ValueError(f"filter: ran longer than {table.seconds:.0f} s: {shown}")
    if "not authorized" in message or "prohibited" in message:
        allowed = ", ".join(sorted(_FUNCTIONS)[2:])
        return ValueError(f"filter: {message}; allowed are comparisons and {allowed}")
    if type(error) is sqlite3.DatabaseError or "disk I/O" in message:
        return IndexFormatError(f"{table.path}: cannot be read ({message})")
    return ValueError(f"filter: {message}: {shown}")


def _unknown(name: str, known: Sequence[str]) -> str:
    shown = ", ".join(map(repr, known[:_MAX_NAMED])) or "none"
    more = f" and {len(known) - _MAX_NAMED} more" if len(known) > _MAX_NAMED else ""
    return f"filter: no document has the key {name!r}; the keys are: {shown}{more}"


def _authorize(
    readable: str | None,
    action: int,
    table: str | None,
    name: str | None,
    _schema: str | None,
    _via: str | None,
) -> int:
    if action == sqlite3.SQLITE_SELECT:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_READ and table is not None and table == readable:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and name is not None and name.lower() in _FUNCTIONS:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def _shown(expression: str) -> str:
    return repr(expression if len(expression) <= _MAX_SHOWN else f"{expression[:_MAX_SHOWN]}...")


def is_unicode(text: str) -> bool:
    """Whether UTF-8, as SQLite stores texts, can hold `text`: not with lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _fold(name: str) -> str:
    """Lower case as SQLite sees it: of ASCII letters alone."""
    return name.translate(_ASCII_LOWER)
