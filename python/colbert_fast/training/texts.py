"""Texts by id, in memory or on disk."""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from colbert_fast.corpus import find_file, join_title, read_corpus
from colbert_fast.errors import IndexFormatError, UnknownDocumentError
from colbert_fast.indexing.ingest import read_documents
from colbert_fast.storage.documents import Document, DocumentStore, DocumentWriter, sqlite_uri
from colbert_fast.storage.lock import writer_lock
from colbert_fast.training.files import is_dataset, open_dataset, replacing

__all__ = ["Source", "StoredTexts", "Texts", "store_texts"]

_ID_COLUMNS = ("query_id", "document_id", "_id", "id")
_STORE, _SOURCE = "documents.sqlite", "source.json"

Source = str | os.PathLike[str] | Mapping[Any, str] | Iterable[Any]
"""Texts as `Texts.open` takes them."""


class Texts(Mapping[str, str]):
    """Queries or documents: id to text.

    A missing id raises `UnknownDocumentError`, a KeyError that says which and where.

    Parameters
    ----------
    texts
        Id to text.
    name
        Where they come from, for error messages.
    """

    def __init__(self, texts: Mapping[str, str], *, name: str = "texts") -> None:
        self.name = name
        self._texts = texts

    @staticmethod
    def open(source: Source, *, cache: str | os.PathLike[str] | None = None) -> Texts:
        """Read texts of any kind; ids become strings.

        Parameters
        ----------
        source
            A BEIR folder (its corpus); a file as `corpus.read_corpus` reads it (``.jsonl``,
            ``.tsv``, ``.txt``, perhaps with ``.gz``; queries as well as documents; titles are put
            before their texts); ``.parquet`` or a folder saved by `datasets`, with the columns text
            and query_id, document_id, _id or id, as PyLate has them; a folder that was a `cache`; a
            mapping of id to text; or an iterable of documents as `Index.build` takes it.
        cache
            Keep the texts in this folder instead of in memory. It is used again as long as the
            file that they were read from has the same size and time; what was not read from a file
            is written anew. Processes that open it at once wait for the one that writes it, by a
            lock in the folder beside it whose name ends in ``.lock``.

        Raises
        ------
        FileNotFoundError, ValueError, TypeError
            There is no such file, an id comes twice, or a line or item is no text; named.
        FileExistsError
            `cache` is a folder of something else.
        """
        if cache is not None:
            return store_texts(source, Path(cache))
        if isinstance(source, Texts):
            return source
        if isinstance(source, (str, os.PathLike)) and Path(source, _STORE).is_file():
            return StoredTexts(Path(source))
        name = _name(source)
        texts: dict[str, str] = {}
        for key, text in _read(source, name):
            if key in texts:
                raise ValueError(f"{name}: the id {key!r} comes a second time")
            texts[key] = text
        return Texts(texts, name=name)

    def many(self, ids: Iterable[str]) -> list[str]:
        """The texts of several ids, in their order."""
        return [self[each] for each in ids]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """All ids and texts in their order, as a stream; `items` looks them up one by one."""
        return iter(self._texts.items())

    def __getitem__(self, key: str) -> str:
        try:
            return self._texts[key]
        except KeyError:
            raise self._unknown(key) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def _unknown(self, key: str) -> UnknownDocumentError:
        example = next(iter(self), None)
        return UnknownDocumentError(
            f"{self.name}: no text with the id {key!r}; the {len(self)} ids here look like "
            f"{example!r}"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, texts={len(self)})"


class StoredTexts(Texts):
    """Texts in a folder on disk, which `Texts.open` has written; made by it too.

    A pickle holds the path. The file is opened by each process for itself: a connection to SQLite
    does not survive a fork.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__({}, name=str(folder))
        self._path = folder.absolute() / _STORE
        self._count = _count(self._path)
        self._opened: tuple[int, DocumentStore] | None = None

    @property
    def store(self) -> DocumentStore:
        """The texts and their words, under positions 0 to n - 1."""
        process = os.getpid()
        if self._opened is None or self._opened[0] != process:
            self._opened = process, DocumentStore(self._path, self._count)
        return self._opened[1]

    def many(self, ids: Iterable[str]) -> list[str]:
        """The texts of several ids, in their order."""
        ids = list(ids)
        positions = self.store.find(ids)
        for each in ids:
            if each not in positions:
                raise self._unknown(each)
        documents = self.store.fetch(positions.values())
        return [documents[positions[each]].text or "" for each in ids]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """All ids and texts in their order, as a stream; `items` looks them up one by one."""
        return ((row[1], row[2]) for row in self.store.rows())

    def close(self) -> None:
        """Let go of the file; it is opened again when it is needed."""
        if self._opened is not None:
            self._opened[1].close()
            self._opened = None

    def __getitem__(self, key: str) -> str:
        return self.many([key])[0]

    def __iter__(self) -> Iterator[str]:
        return (row[1] for row in self.store.rows())

    def __len__(self) -> int:
        return self._count

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None}


def _count(path: Path) -> int:
    """How many texts a store holds, whose last position says so."""
    try:
        with closing(sqlite3.connect(f"{sqlite_uri(path)}?mode=ro", uri=True)) as connection:
            [(last,)] = connection.execute("SELECT max(pid) FROM documents")
    except sqlite3.Error as error:
        raise IndexFormatError(f"{path}: cannot be read ({error})") from error
    return 0 if last is None else int(last) + 1


def store_texts(source: Source, folder: Path) -> StoredTexts:
    """Write texts to a folder, unless they are there already; see `Texts.open`."""
    origin = _origin(source)
    if origin is not None and _recorded(folder) == origin:
        return StoredTexts(folder)
    # The folder itself is replaced, so its lock lies beside it.
    lock = folder.with_name(f"{folder.name}.lock")
    lock.mkdir(parents=True, exist_ok=True)
    with writer_lock(lock, timeout=math.inf):
        if origin is None or _recorded(folder) != origin:
            _store(source, folder, origin)
    return StoredTexts(folder)


def _store(source: Source, folder: Path, origin: dict[str, Any] | None) -> None:
    with replacing(folder, folder_with=_SOURCE) as partial:
        partial.mkdir(parents=True)
        with DocumentWriter(partial / _STORE) as writer:
            for key, text in _read(source, _name(source)):
                writer.add(Document(key, text))
            writer.close()
        if writer.count == 0:
            raise ValueError(f"{_name(source)}: no texts to keep in {folder}")
        (partial / _SOURCE).write_text(json.dumps(origin), encoding="utf-8")


def _origin(source: Source) -> dict[str, Any] | None:
    """What tells whether a file is still the one that was read."""
    if not isinstance(source, (str, os.PathLike)):
        return None
    file = _main_file(Path(source))
    status = file.stat()
    return {"path": str(file.absolute()), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _main_file(path: Path) -> Path:
    """What a folder's texts change with."""
    if not path.is_dir():
        return path
    states = (path / name for name in ("state.json", "train/state.json"))
    return next(filter(Path.is_file, states), None) or find_file(path, "corpus.jsonl")


def _recorded(folder: Path) -> Any:
    try:
        return json.loads((folder / _SOURCE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def _name(source: Source) -> str:
    if isinstance(source, Texts):
        return source.name
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else "texts"


def _read(source: Source, name: str) -> Iterator[tuple[str, str]]:
    """Id and text of each, as they come."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        source = _read_dataset(path) if is_dataset(path) else read_corpus(path)
    elif isinstance(source, Texts):
        source = source.pairs()
    elif isinstance(source, Mapping):
        source = source.items()
    for document in read_documents(source):
        if document.text is None:
            raise ValueError(f"{name}: document {document.id!r} has no text")
        yield str(document.id), document.text


def _read_dataset(path: Path) -> Iterator[dict[str, Any]]:
    data = open_dataset(path)
    columns = data.column_names
    key = next(filter(columns.__contains__, _ID_COLUMNS), None)
    if key is None or "text" not in columns:
        raise ValueError(
            f"{path}: wanted the columns text and one of {', '.join(_ID_COLUMNS)}; got "
            f"{', '.join(columns)}"
        )
    for row in data:
        yield {"id": row[key], "text": join_title(row.get("title") or "", row["text"])}
