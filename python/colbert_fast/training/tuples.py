"""One training tuple, and the layouts that it has as a line of a file or a row of a dataset."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from numbers import Real
from typing import Any, Literal, NamedTuple

__all__ = ["COLUMNS", "NWay", "TupleLayout", "checked", "format_line", "parse_line", "parse_row"]

TupleLayout = Literal["stanford", "pylate"]

COLUMNS = ("query_id", "document_ids", "scores")
"""PyLate's; the last may be missing."""


class NWay(NamedTuple):
    """One training tuple; the first document is the positive, where there is one.

    Attributes
    ----------
    query_id
    document_ids
        At least one.
    scores
        The teacher's for each document, finite, or None for all.
    """

    query_id: str
    document_ids: tuple[str, ...]
    scores: tuple[float, ...] | None = None


def parse_line(line: str, *, tabs: bool = False) -> NWay:
    """The tuple of a line of JSON, or of ids with tabs between them.

    Raises
    ------
    ValueError
        It is none; the message does not know which line it is.
    """
    if tabs:
        return _from_list(line.split("\t"))
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})") from error
    if isinstance(record, dict):
        return parse_row(record)
    if isinstance(record, list):
        return _from_list(record)
    raise ValueError(f"wanted a list or an object, got {type(record).__name__}")


def _from_list(record: list[Any]) -> NWay:
    """Read Stanford's triples, n-way tuples, and the files of its scorer."""
    if len(record) < 2:
        raise ValueError(f"wanted a query id and documents, got {len(record)} values")
    query, *documents = record
    if len(documents) == 1 and isinstance(documents[0], list) and _is_nested(documents[0]):
        # The scorer puts the score first: [[score, document], ...].
        documents = [each[::-1] for each in documents[0]]
    scored = [isinstance(each, list) for each in documents]
    if not any(scored):
        return checked(query, documents, None)
    for each in documents:
        if not isinstance(each, list) or len(each) != 2:
            raise ValueError(f"wanted [document, score] for every document or none, got {each!r}")
    return checked(query, [each[0] for each in documents], [each[1] for each in documents])


def _is_nested(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(each, list) for each in value)


def parse_row(record: Mapping[str, Any]) -> NWay:
    """The tuple of a row in PyLate's layout; ValueError if it is none."""
    missing = [name for name in COLUMNS[:2] if record.get(name) is None]
    if missing:
        got = ", ".join(record) or "none"
        raise ValueError(f"wanted query_id, document_ids and perhaps scores, got the keys: {got}")
    scores = record.get("scores")
    return checked(
        record["query_id"],
        _as_list(record["document_ids"], "document_ids"),
        None if scores is None else _as_list(scores, "scores"),
    )


def _as_list(value: Any, name: str) -> list[Any]:
    """A list, or the text of one, as in datasets that went through CSV."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError(f"`{name}` is text, but not that of a list") from error
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"`{name}` must be a list, got {type(value).__name__}")
    return list(value)


def checked(query: Any, documents: Sequence[Any], scores: Sequence[Any] | None) -> NWay:
    """A tuple of plain strings and floats; ValueError if it cannot be one."""
    if not documents:
        raise ValueError(f"query {query!r} has no documents")
    if scores is not None and len(scores) != len(documents):
        raise ValueError(f"{len(scores)} scores for {len(documents)} documents")
    return NWay(
        _as_id(query, "query"),
        tuple([_as_id(each, "document") for each in documents]),
        None if scores is None else tuple([_as_score(each) for each in scores]),
    )


def _as_id(value: Any, what: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"the id of a {what} must be a string or an integer, got {value!r}")
    return str(value)


def _as_score(value: Any) -> float:
    score = math.nan
    if isinstance(value, (float, int, Real)) and not isinstance(value, bool):
        with suppress(OverflowError):  # an integer beyond all floats
            score = float(value)
    if not math.isfinite(score):
        raise ValueError(f"a score must be a finite number, got {value!r:.60}")
    return score


def format_line(item: NWay, layout: TupleLayout) -> str:
    """The JSON of a tuple, which `parse_line` reads back as it was."""
    if layout == "pylate":
        row = dict(zip(COLUMNS, item, strict=True))
        if item.scores is None:
            del row["scores"]
        return json.dumps(row)
    ids = [_stanford_id(each) for each in item.document_ids]
    documents = ids if item.scores is None else list(zip(ids, item.scores, strict=True))
    return json.dumps([_stanford_id(item.query_id), *documents])


def _stanford_id(name: str) -> str | int:
    """A number where the id is one: Stanford's collections and queries have numbers for ids."""
    return int(name) if name.isascii() and name.isdigit() and str(int(name)) == name else name
