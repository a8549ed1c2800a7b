"""Filters: expressions over metadata, and what they are refused."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_fast.errors import IndexFormatError
from colbert_fast.storage import filters
from colbert_fast.storage.filters import FieldTable, Filter, matching, read_filter, write_fields

METADATA: list[dict[str, Any] | None] = [
    {"year": 2020, "lang": "de", "tags": ["a", "b"], "Title": "x"},
    {"year": 1999, "title": "lower", "": "empty", "a b": 1, "author": {"name": "Ü"}},
    None,
    {"year": 2021.5, "lang": None, "big": 10**30, "nan": float("nan"), "good": True, "pid": 9},
]


def table_of(path: Path, metadata: Iterable[Mapping[str, Any] | None]) -> FieldTable:
    rows = [
        (pid, None if each is None else json.dumps(each, ensure_ascii=False))
        for pid, each in enumerate(metadata)
    ]
    writer = sqlite3.connect(path)
    writer.execute("CREATE TABLE documents (pid INTEGER PRIMARY KEY, metadata TEXT)")
    writer.executemany("INSERT INTO documents VALUES (?, ?)", rows)
    write_fields(writer)
    writer.commit()
    writer.close()
    return FieldTable(sqlite3.connect(path, check_same_thread=False), path, len(rows))


@pytest.fixture
def table(tmp_path: Path) -> FieldTable:
    return table_of(tmp_path / "documents.sqlite", METADATA)


def found(table: FieldTable, condition: Filter) -> list[int]:
    [positions] = matching([table], read_filter(condition))
    assert positions.dtype == np.int64
    return positions.tolist()


@pytest.mark.parametrize(
    ("condition", "positions"),
    [
        ("year >= 2020 and lang = 'de'", [0]),
        ("year >= 2020", [0, 3]),
        ("lang IS NULL", [1, 2, 3]),
        ("NOT year > 2020", [0, 1]),
        ("1", [0, 1, 2, 3]),
        ("year IN (1999, 2020)", [0, 1]),
        ("'--;(' = lang or year = 1999", [1]),
        ("lang = 'd''e'", []),
        ("tags LIKE '%\"a\"%'", [0]),
        ("tags ->> 0 = 'a'", [0]),
        ("author ->> 'name' = 'Ü'", [1]),
        ("json_array_length(tags) = 2", [0]),
        ('"a b" = 1', [1]),
        ("[a b] = 1 AND `a b` = 1", [1]),
        ("\"\" = 'empty'", [1]),
        ("good", [3]),
        ("big > 1e20", [3]),
        ("nan IS NULL", [0, 1, 2, 3]),
        ("pid = 9", [3]),
        ("CASE WHEN year > 2000 THEN lang = 'de' END", [0]),
        ("cast(year AS text) LIKE '20%'", [0, 3]),
        ("max(year, 2021) > 2021", [3]),
        (("year >= ? AND lang = ?", [2020, "de"]), [0]),
        (("year >= :least", {"least": np.float32(2021), "more": None}), [3]),
        (("lang = ?", ("'; DROP TABLE documents",)), []),
        (("good = ?", [True]), [3]),
        (("coalesce(lang, ?) = ?", [None, np.str_("de")]), [0]),
    ],
)
def test_what_a_filter_finds(table: FieldTable, condition: Filter, positions: list[int]) -> None:
    assert found(table, condition) == positions


def test_keys_are_names_whose_case_does_not_matter(table: FieldTable) -> None:
    assert found(table, "title = 'lower'") == [1]
    assert found(table, "TITLE = 'x'") == [0]


@pytest.mark.parametrize("key", ["वर्ष", "e\u0301te\u0301", "ปีที่", "😀", "naïve_key", "名前", "१"])
def test_keys_in_any_script(tmp_path: Path, key: str) -> None:
    table = table_of(tmp_path / "documents.sqlite", [{key: 1}, {key: 2}])
    assert found(table, f"{key} = 2") == [1]
    assert found(table, (f"{key} = :{key}", {key: 1})) == [0]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("langg = 'de'", r"no document has the key 'langg'; the keys are: 'year', 'lang', 'tags'"),
        ("\"langg\" = 'de'", r"no document has the key 'langg'"),
        ("fields.c0 = 1", r"no document has the key 'fields.c0'"),
        ("c0 = 1", r"no document has the key 'c0'"),
        ("वर्ष = 1", r"no document has the key 'वर्ष'"),
        ("\u00a0year = 1999", r"no document has the key '\\xa0year'"),
        ("rowid = 1", r"no document has the key 'rowid'"),
        ("EXISTS (SELECT 1)", r"'SELECT' at 8 is not allowed"),
        ("year IN (VALUES (1))", r"'VALUES' at 9 is not allowed"),
        ("year IN documents", r"access to documents.pid is prohibited"),
        ("year IN sqlite_master", r"access to sqlite_master.type is prohibited"),
        ("year IN json_each('[1]')", r"filter: "),
        ("1) OR (1", r"parentheses do not match"),
        ("(1", r"parentheses do not match"),
        ("1; DROP TABLE documents", r"';' at 1 is not allowed"),
        ("year --", r"'--' at 5 is not allowed"),
        ("year /*", r"'/\*' at 5 is not allowed"),
        ("lang = 'de", r"\"'\" at 7 is not allowed"),
        ('"lang', r"'\"' at 0 is not allowed"),
        ("lang = 'a\0b'", r"not a text that SQL can hold"),
        ("lang = '\ud800'", r"not a text that SQL can hold"),
        ("random() > 0", r"not authorized to use function: random; allowed are .* abs, coalesce"),
        ("load_extension('x')", r"not authorized to use function: load_extension"),
        ("zeroblob(1000000000)", r"not authorized to use function: zeroblob"),
        ("max(year) = 2020", r"misuse of aggregate"),
        ("year =", r"syntax error: 'year ='"),
        ("json_extract('x', '$')", r"malformed JSON"),
        ("1" + "+1" * 5000, r"Expression tree is too large .*\.\.\.'$"),
        ("  ", r"the expression is empty"),
        ("[Position of the document] < 2", r"no document has the key 'position of the document'"),
        (("year = ?", []), r"0 values, 1 `\?` in the expression"),
        (("year = ?1", [1]), r"'\?1' at 7 is not allowed"),
        (("year = @a", {"a": 1}), r"'@' at 7 is not allowed"),
        (("year = :a", [1]), r"a list of values, but :a in the expression"),
        (("year = :a", {"b": 1}), r"no value for :a in the expression"),
        (("year = ?", {"a": 1}), r"a dict of values, but a `\?` in the expression"),
        (("year = ?", [2**63]), r"value 0: 9223372036854775808 does not fit in 64 bits"),
        (("lang = ?", ["\ud800"]), r"value 0 is not valid Unicode"),
    ],
)
def test_what_a_filter_is_refused(table: FieldTable, condition: Filter, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found(table, condition)
    assert found(table, "year = 1999") == [1]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (3, r"filter: expected an SQL expression .* got int"),
        (("year", 1, 2), r"filter: expected an SQL expression .* got tuple"),
        (("lang = ?", "d"), r"filter: values must be a list or a dict, got str"),
        (("year = ?", [[1]]), r"filter: value 0 must be a str, a number, a bool or None, got list"),
        (("year = :a", {"a": b""}), r"filter: :a must be a str, .* got bytes"),
    ],
)
def test_types_that_are_refused(condition: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        read_filter(condition)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["year", "lang", " ", "=", "'", '"', "(", ")", "1", ";", "--", "/*", "*/", "\n", "or",
             "select", "pid", "from", "documents", "fields", "in", "union", "[", "]", "`", ",", "?",
             ":a", "random", "case", "end", "\\", "%", "||", "not", "json_each", "exists"]
        ),
        max_size=12,
    ).map(lambda words: " ".join(words))
)  # fmt: skip
def test_no_expression_does_anything_else(expression: str) -> None:
    # Either positions of documents that are there, or one kind of error.
    for metadata in (json.dumps({"year": 1, "lang": "x"}), None):
        writer = sqlite3.connect(":memory:")
        writer.execute("CREATE TABLE documents (pid INTEGER PRIMARY KEY, metadata TEXT)")
        writer.execute("INSERT INTO documents VALUES (0, ?)", (metadata,))
        write_fields(writer)
        writer.commit()
        table = FieldTable(writer, Path("memory"), 1)
        try:
            assert found(table, expression) in ([], [0])
        except ValueError as error:
            assert str(error).startswith("filter: ")  # noqa: PT017
        finally:
            table.close()


def test_sqlite_itself_refuses_what_the_first_look_might_miss(
    table: FieldTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filters, "_STATEMENTS", frozenset())
    with pytest.raises(ValueError, match="prohibited"):
        found(table, "year IN (SELECT pid FROM documents)")
    for statement in ("DROP TABLE fields", "ATTACH 'x' AS x", "PRAGMA user_version = 3"):
        with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
            table._connection.execute(statement)


def test_a_filter_that_runs_away_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filters, "_SECONDS", -1.0)
    monkeypatch.setattr(filters, "_STEPS", 10)
    table = table_of(tmp_path / "documents.sqlite", METADATA * 100)
    with pytest.raises(ValueError, match=r"filter: ran longer than -1 s: 'year > 2000'"):
        found(table, "year > 2000")


def test_stores_with_other_keys(tmp_path: Path, table: FieldTable) -> None:
    other = table_of(tmp_path / "other.sqlite", [{"lang": "fr"}, {"size": 3}])
    bare = table_of(tmp_path / "bare.sqlite", [None, None])
    with closing(sqlite3.connect(tmp_path / "bare.sqlite")) as connection:
        assert connection.execute("SELECT * FROM fields").fetchall() == []

    def each(condition: str) -> list[list[int]]:
        return [part.tolist() for part in matching([table, other, bare], read_filter(condition))]

    assert each("size = 3 OR year = 1999") == [[1], [1], []]
    assert each("lang IS NULL") == [[1, 2, 3], [1], [0, 1]]
    assert each("1 = 1") == [[0, 1, 2, 3], [0, 1], [0, 1]]
    with pytest.raises(ValueError, match=r"the key 'year'; the keys are: 'lang', 'size'$"):
        matching([other, bare], read_filter("year"))
    with pytest.raises(ValueError, match=r"the key 'year'; the keys are: none"):
        matching([bare], read_filter("year"))
    with pytest.raises(ValueError, match="prohibited"):
        matching([bare], read_filter("1 IN fields"))


def test_more_documents_than_a_batch_and_keys_that_come_late(tmp_path: Path) -> None:
    metadata = [{"n": i, **({"late": i % 7} if i > 1500 else {})} for i in range(2500)]
    table = table_of(tmp_path / "documents.sqlite", metadata)
    assert found(table, "late = 3") == [i for i in range(1501, 2500) if i % 7 == 3]
    assert found(table, "n % 2 = 0") == list(range(0, 2500, 2))


def test_more_keys_than_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "_MAX_COLUMNS", 2)
    table = table_of(tmp_path / "documents.sqlite", [{"a": 1}, {"b": 2, "c": 3}])
    assert found(table, "b = 2") == [1]
    with pytest.raises(ValueError, match=r"'c' is not among the first 2 metadata keys"):
        found(table, "c = 3")
    with pytest.raises(
        ValueError, match=r"no document has the key 'd'; the keys are: 'a', 'b', 'c'"
    ):
        found(table, "d = 3")


def test_damaged_and_closed_tables(tmp_path: Path, table: FieldTable) -> None:
    empty = sqlite3.connect(tmp_path / "empty.sqlite")
    with pytest.raises(IndexFormatError, match=r"empty\.sqlite: cannot be read \(no such table"):
        FieldTable(empty, tmp_path / "empty.sqlite", 1)
    empty.close()
    table.close()
    with pytest.raises(ValueError, match="the index is closed"):
        found(table, "year")
