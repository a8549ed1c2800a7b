"""Training tuples on disk: a query, the documents to tell apart, and what a teacher thinks of them.

Layouts:

- Stanford ColBERT's lines of JSON, ``.jsonl`` or ``.json``: triples ``[query, positive, negative,
  ...]``; n-way tuples ``[query, [document, score], ...]``; and what its scorer writes,
  ``[query, [[score, document], ...]]``;
- PyLate's columns ``query_id``, ``document_ids`` and perhaps ``scores`` (lists, or lists as text):
  as objects in lines of JSON, as ``.parquet``, or as a folder saved by ``datasets``;
- ``.tsv``: ids with tabs between them, the query's first.

Lines may be gzipped (``.gz``). Ids are strings or integers in the files, and strings here.
"""

from __future__ import annotations

import gzip
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args, overload

import numpy as np
import numpy.typing as npt

from colbert_fast.corpus import read_lines
from colbert_fast.training.files import DATASET_FILES, open_dataset, replacing, require
from colbert_fast.training.tuples import (
    COLUMNS,
    NWay,
    TupleLayout,
    checked,
    format_line,
    parse_line,
    parse_row,
)

__all__ = ["TupleFile", "read_tuples", "write_tuples"]

_Container = Literal["json", "tsv", "parquet", "folder"]
_SUFFIXES: dict[str, _Container] = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_ROWS = 10_000  # tuples written to a parquet file at once


def read_tuples(path: str | os.PathLike[str]) -> Iterator[NWay]:
    """Stream the tuples of a file, or of a folder saved by `datasets`; the layout is recognised.

    Raises
    ------
    FileNotFoundError
        There is nothing at `path`.
    ValueError
        The suffix says nothing, or a line or row is no tuple; the message names file and line.
    MissingDependencyError
        ``.parquet`` and folders need the package `datasets`.
    """
    path = Path(path)
    container = _container(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if container in ("parquet", "folder"):
        rows = _Rows(path)
        return (rows[index] for index in range(len(rows)))
    return _read_lines(path, container)


def _container(path: Path) -> _Container:
    if path.is_dir() or (not path.exists() and not path.suffix):
        return "folder"
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix.lower() not in _SUFFIXES:
        raise ValueError(
            f"{path}: cannot tell the format of training tuples from the suffix {suffix!r}; wanted "
            f"one of {', '.join(_SUFFIXES)}, or a folder saved by datasets"
        )
    return _SUFFIXES[suffix.lower()]


def _read_lines(path: Path, container: _Container) -> Iterator[NWay]:
    for number, line in read_lines(path):
        try:
            item = parse_line(line, tabs=container == "tsv")
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        yield item


def write_tuples(
    path: str | os.PathLike[str], tuples: Iterable[NWay], *, layout: TupleLayout = "stanford"
) -> int:
    """Write tuples as they come; `path` appears, or is replaced, when all of them are written.

    Parameters
    ----------
    path
        ``.jsonl`` or ``.json``, perhaps with ``.gz``; in PyLate's layout also ``.parquet``, or a
        name without a suffix for a folder that `datasets.load_from_disk` reads.
    tuples
        Read once.
    layout
        "stanford": ``[query, [document, score], ...]``, or ``[query, document, ...]`` where there
        are no scores; ids that are numbers are written as numbers. "pylate": the columns
        query_id, document_ids and scores.

    Returns
    -------
    int
        How many were written.

    Raises
    ------
    ValueError
        The layout does not go with the suffix, or a tuple is none: a score is not finite, say.
    FileExistsError
        A folder of something else is at `path`.
    MissingDependencyError
        ``.parquet`` and folders need the package `datasets`.
    """
    path = Path(path)
    if layout not in get_args(TupleLayout):
        raise ValueError(f"`layout` must be one of {get_args(TupleLayout)}; got {layout!r}")
    container = _container(path)
    if container == "tsv" or (container != "json" and layout != "pylate"):
        raise ValueError(
            f"{path}: layout {layout!r} is written as .jsonl"
            f"{', .parquet or a folder' if layout == 'pylate' else ''}"
        )
    good = _check_all(tuples)
    if container == "json":
        with replacing(path) as partial:
            return _write_lines(partial, good, layout, compress=path.suffix == ".gz")
    if container == "parquet":
        with replacing(path) as partial:
            return _write_parquet(partial, good)
    return _write_folder(path, good)


def _check_all(tuples: Iterable[NWay]) -> Iterator[NWay]:
    for index, item in enumerate(tuples):
        try:
            good = checked(*item)
        except ValueError as error:
            raise ValueError(f"tuples[{index}]: {error}") from error
        yield good


def _write_lines(path: Path, tuples: Iterable[NWay], layout: TupleLayout, *, compress: bool) -> int:
    count = 0
    with path.open("wb") as raw:
        # No time and no name in the header: the same tuples give the same file.
        file = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if compress else raw
        with io.TextIOWrapper(file, encoding="utf-8", newline="\n") as text:
            for count, item in enumerate(tuples, 1):  # noqa: B007
                text.write(format_line(item, layout) + "\n")
    return count


def _write_parquet(path: Path, tuples: Iterable[NWay]) -> int:
    pyarrow, parquet = (require(name, f"writing {path}") for name in ("pyarrow", "pyarrow.parquet"))
    strings, numbers = pyarrow.list_(pyarrow.string()), pyarrow.list_(pyarrow.float64())
    types = zip(COLUMNS, (pyarrow.string(), strings, numbers), strict=True)
    schema = pyarrow.schema(list(types))
    count, stream = 0, iter(tuples)
    with parquet.ParquetWriter(path, schema) as writer:
        while rows := list(islice(stream, _ROWS)):
            columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
            writer.write_table(pyarrow.table(columns, schema=schema))
            count += len(rows)
    return count


def _write_folder(path: Path, tuples: Iterable[NWay]) -> int:
    datasets = require("datasets", f"writing {path}")
    with (
        replacing(path, folder_with=DATASET_FILES[0]) as partial,
        tempfile.TemporaryDirectory(dir=partial.parent) as scratch,
    ):
        count = _write_parquet(Path(scratch, "tuples.parquet"), tuples)
        data = datasets.Dataset.from_parquet(f"{scratch}/tuples.parquet", cache_dir=scratch)
        data.save_to_disk(str(partial))
    return count


class TupleFile(Sequence[NWay]):
    """The tuples of a file that need not fit in memory, in any order.

    Of lines only their places are kept, 8 bytes each; ``.parquet`` and folders are mapped by
    `datasets`. What is pickled is the path and those places, so that workers of a data loader open
    the file for themselves.

    Parameters
    ----------
    path
        As for `read_tuples`, but not gzipped. It must not change while this object is used.

    Raises
    ------
    FileNotFoundError, ValueError, MissingDependencyError
        As for `read_tuples`; a line is parsed when it is asked for. Or the file is gzipped or
        holds no tuples.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        container = _container(self.path)
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path}: no such file or folder")
        self._source: _Rows | _Lines = (
            _Rows(self.path) if container in ("parquet", "folder") else _Lines(self.path, container)
        )
        if len(self._source) == 0:
            raise ValueError(f"{self.path}: no tuples in this file")

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, index: int) -> NWay: ...
    @overload
    def __getitem__(self, index: slice) -> list[NWay]: ...
    def __getitem__(self, index: int | slice) -> NWay | list[NWay]:
        if isinstance(index, slice):
            return [self._source[place] for place in range(len(self))[index]]
        return self._source[self._place(index)]

    def where(self, index: int) -> str:
        """File and line (or row) of a tuple, for error messages."""
        return self._source.where(self._place(index))

    def _place(self, index: int) -> int:
        try:
            return range(len(self))[index]
        except IndexError:
            raise IndexError(f"{self.path}: no tuple {index}, there are {len(self)}") from None

    def __repr__(self) -> str:
        return f"TupleFile({str(self.path)!r}, tuples={len(self)})"


class _Lines:
    """The lines of a file by number, blank ones left out."""

    def __init__(self, path: Path, container: _Container) -> None:
        if path.suffix == ".gz":
            raise ValueError(
                f"{path}: lines of a gzipped file cannot be read in any order; unpack it, or take "
                "list(read_tuples(path)) if it fits in memory"
            )
        self._path = path
        self._tabs = container == "tsv"
        self._ends: npt.NDArray[np.int64] = np.fromiter(self._scan(), np.int64)
        self._bytes: npt.NDArray[np.uint8] | None = None

    def _scan(self) -> Iterator[int]:
        """Where the first line begins, then the end of every line that is not blank."""
        yield 0
        end = 0
        with self._path.open("rb") as file:
            for line in file:
                end += len(line)
                if not line.isspace():
                    yield end

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> NWay:
        if self._bytes is None:
            self._bytes = np.memmap(self._path, np.uint8, mode="r")
        raw = self._bytes[self._ends[index] : self._ends[index + 1]].tobytes()
        try:
            # Blank lines before this one are part of it.
            text = raw.decode("utf-8-sig" if index == 0 else "utf-8").strip("\r\n")
            return parse_line(text.rpartition("\n")[2], tabs=self._tabs)
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.where(index)}: not UTF-8 text ({error.reason})") from error
        except ValueError as error:
            raise ValueError(f"{self.where(index)}: {error}") from error

    def where(self, index: int) -> str:
        """Lines are only counted for an error."""
        end = int(self._ends[index + 1])
        with self._path.open("rb") as file:
            number, read = 0, 0
            for line in file:
                number, read = number + 1, read + len(line)
                if read >= end:
                    break
        return f"{self._path}:{number}"

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map is all of the file.
        return {**vars(self), "_bytes": None}


class _Rows:
    """The rows of a dataset in PyLate's layout."""

    def __init__(self, path: Path) -> None:
        self._path = path
        data = open_dataset(path)
        missing = [name for name in COLUMNS[:2] if name not in data.column_names]
        if missing:
            raise ValueError(
                f"{path}: wanted the columns query_id, document_ids and perhaps scores; got "
                f"{', '.join(data.column_names)}"
            )
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> NWay:
        try:
            return parse_row(self._data[index])
        except ValueError as error:
            raise ValueError(f"{self.where(index)}: {error}") from error

    def where(self, index: int) -> str:
        return f"{self._path}: row {index}"
