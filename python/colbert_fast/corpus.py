"""Readers of text collections and of saved embeddings; complaints name the file and the line.

Four layouts of text, each plain or gzipped:

- a folder in BEIR layout, or its ``corpus.jsonl[.gz]``: objects with ``_id``, ``title``, ``text``;
- ``.jsonl``: the same with ``_id`` or ``id`` or neither, and any other keys as metadata;
- ``.tsv``: ``id <tab> text [<tab> title]``, with or without a header line;
- ``.txt``: one passage per line, whose id is its line number.
"""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import numpy.typing as npt

__all__ = [
    "Embeddings",
    "TextLayout",
    "find_file",
    "load_embeddings",
    "read_corpus",
    "read_json_lines",
    "read_lines",
    "save_embeddings",
]

TextLayout = Literal["beir", "jsonl", "tsv", "text"]

_SUFFIXES: dict[str, TextLayout] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".tsv": "tsv",
    ".txt": "text",
}
_TSV_ID_NAMES = {"id", "_id", "pid", "docid", "doc_id"}


def read_corpus(path: str | Path, *, layout: TextLayout | None = None) -> Iterator[dict[str, Any]]:
    """Stream the documents of a text collection.

    Parameters
    ----------
    path : str or Path
        A folder in BEIR layout, or a file.
    layout : {"beir", "jsonl", "tsv", "text"}, optional
        What the file is; by default its suffix tells.

    Yields
    ------
    dict
        ``id`` (str or int) and ``text``, into which a title is put first; the title itself and
        every other key of the source are kept beside them, as metadata.

    Raises
    ------
    FileNotFoundError
        There is no such file, or no ``corpus.jsonl`` in the folder.
    ValueError
        The suffix says nothing, or a line is not what the format wants; names file and line.
    """
    path = Path(path)
    readers = {"beir": _read_beir, "jsonl": _read_jsonl, "tsv": _read_tsv, "text": _read_text}
    return readers[layout or guess_layout(path)](path)


def guess_layout(path: Path) -> TextLayout:
    """Tell the format of `path` from its suffix, looking through a final ``.gz``."""
    if path.is_dir():
        return "beir"
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix.lower() not in _SUFFIXES:
        wanted = ", ".join(_SUFFIXES)
        formats = ", ".join(get_args(TextLayout))
        raise ValueError(
            f"{path}: cannot tell the format from the suffix {suffix!r}; wanted a folder in BEIR "
            f"layout, one of {wanted} (perhaps with .gz), embeddings in .npz or .npy, or --format: "
            f"{formats}"
        )
    return _SUFFIXES[suffix.lower()]


def find_file(folder: Path, name: str) -> Path:
    """Return ``folder/name`` or ``folder/name.gz``, whichever exists."""
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{folder}: no {name} or {name}.gz in this folder")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Stream ``(line number, line)`` of a UTF-8 file, gzipped if its name ends in ``.gz``.

    Line numbers start at 1; blank lines are left out, line ends and a byte order mark cut off.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{number}: not UTF-8 text ({error.reason})") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: damaged gzip file after line {number} ({error})") from error


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Stream ``(line number, object)`` of a JSON-lines file."""
    for number, line in read_lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error.msg})") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}:{number}: wanted an object, got {type(record).__name__}")
        yield number, record


def _read_beir(path: Path) -> Iterator[dict[str, Any]]:
    return _read_jsonl(find_file(path, "corpus.jsonl") if path.is_dir() else path)


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    first_has_id: bool | None = None
    for position, (number, record) in enumerate(read_json_lines(path)):
        has_id = "_id" in record or "id" in record
        first_has_id = has_id if first_has_id is None else first_has_id
        if has_id != first_has_id:
            raise ValueError(
                f"{path}:{number}: give either every line an '_id' or none; the first line has "
                f"{'one' if first_has_id else 'none'}"
            )
        try:
            yield _document(record, position)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error


def _document(record: dict[str, Any], position: int) -> dict[str, Any]:
    """Turn one JSON object into a document; `position` is the id of one that brings none."""
    metadata = {key: value for key, value in record.items() if key not in ("_id", "id", "text")}
    name = record.get("_id", record.get("id", position))
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        raise ValueError(f"the id must be a string or an integer, got {name!r}")
    if "embeddings" in metadata:
        raise ValueError("'embeddings' cannot be read from JSON; see load_embeddings for .npz")
    text, title = record.get("text"), record.get("title") or ""
    if not isinstance(text, str) or not isinstance(title, str):
        keys = ", ".join(sorted(record)) or "none"
        raise ValueError(f"wanted a string 'text' (and perhaps 'title'), got the keys: {keys}")
    return {**metadata, "id": name, "text": join_title(title, text)}


def join_title(title: str, text: str) -> str:
    """Put a title before its text, as the BEIR baselines do."""
    return f"{title} {text}".strip() if title else text


def _read_tsv(path: Path) -> Iterator[dict[str, Any]]:
    columns, least = ["id", "text", "title"], 2
    for number, line in read_lines(path):
        fields = line.split("\t")
        if number == 1 and fields[0].strip().lower() in _TSV_ID_NAMES:
            columns = ["id", *(field.strip().lower() for field in fields[1:])]
            least = len(columns)
            if "text" not in columns:
                raise ValueError(f"{path}:1: the header has no 'text' column, only {columns}")
            continue
        if not least <= len(fields) <= len(columns):
            raise ValueError(
                f"{path}:{number}: wanted {len(columns)} columns ({', '.join(columns)}) with tabs "
                f"between them, got {len(fields)}"
            )
        record = dict(zip(columns, fields, strict=False))
        metadata = {key: value for key, value in record.items() if key not in ("id", "text")}
        text = join_title(record.get("title", ""), record["text"])
        yield {**metadata, "id": record["id"], "text": text}


def _read_text(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in read_lines(path):
        yield {"id": number, "text": line}


class Embeddings(NamedTuple):
    """Token embeddings of several texts, one after the other, as `encode` saves them."""

    embeddings: npt.NDArray[np.float16 | np.float32]
    """float16 or float32 (n_tokens, dim)."""
    doclens: npt.NDArray[np.integer[Any]]
    """Tokens of each text: int (n_texts,)."""
    ids: list[str | int] | None

    def texts(self) -> Iterator[npt.NDArray[np.float16 | np.float32]]:
        """Stream the (tokens, dim) array of each text."""
        ends = np.cumsum(self.doclens)
        for start, end in zip(ends - self.doclens, ends, strict=True):
            yield self.embeddings[start:end]


def save_embeddings(
    path: str | Path,
    arrays: Sequence[npt.NDArray[np.float16 | np.float32]],
    *,
    ids: Sequence[str | int],
) -> None:
    """Write the token embeddings of texts to one ``.npz``: embeddings (float16), doclens, ids."""
    path = Path(path)
    rows = [np.asarray(array, dtype=np.float16) for array in arrays]
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(
                file,
                embeddings=np.concatenate(rows) if rows else np.empty((0, 0), np.float16),
                doclens=np.array([len(row) for row in rows], dtype=np.int32),
                ids=_packed(ids),
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _packed(ids: Sequence[str | int]) -> npt.NDArray[Any]:
    """One array: of JSON where another would change ids, as numbers beside texts, or a last NUL."""
    array = np.array(ids)
    return array if array.tolist() == list(ids) else np.array(json.dumps(list(ids)))


def _unpacked(ids: npt.NDArray[Any], path: Path) -> list[str | int]:
    if ids.ndim:
        return ids.tolist()  # type: ignore[no-any-return]
    try:
        return list(json.loads(ids.item()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: `ids` must be an array of one id for each text") from error


def load_embeddings(path: str | Path, *, doclens: str | Path | None = None) -> Embeddings:
    """Read token embeddings from an ``.npz``, or from an ``.npy`` with its doclens beside it.

    Parameters
    ----------
    path : str or Path
        ``.npz`` with ``embeddings`` (n_tokens, dim), ``doclens`` (n_texts,) and perhaps ``ids``;
        or ``.npy`` with the embeddings alone, which are then memory-mapped.
    doclens : str or Path, optional
        The ``.npy`` of the doclens; by default ``NAME.doclens.npy`` beside ``NAME.npy``.

    Raises
    ------
    ValueError
        An array is missing, of the wrong type or shape, or the doclens do not add up.
    """
    path = Path(path)
    if path.suffix == ".npz":
        arrays = _load_npz(path)
    else:
        lengths = Path(doclens) if doclens else path.with_name(f"{path.stem}.doclens.npy")
        arrays = {"embeddings": _load_npy(path), "doclens": _load_npy(lengths)}
    _expect(path, arrays, "embeddings", "float16 or float32 (n_tokens, dim)", ("e", "f"), 2)
    _expect(path, arrays, "doclens", "integers (n_texts,)", np.typecodes["AllInteger"], 1)
    embeddings, lens, ids = arrays["embeddings"], arrays["doclens"], arrays.get("ids")
    if lens.sum() != len(embeddings) or (lens < 0).any():
        raise ValueError(
            f"{path}: `doclens` must add up to the {len(embeddings)} rows of `embeddings`; "
            f"they add up to {lens.sum()}"
        )
    named = None if ids is None else _unpacked(ids, path)
    if named is not None and len(named) != len(lens):
        raise ValueError(f"{path}: {len(named)} `ids` for {len(lens)} `doclens`")
    return Embeddings(embeddings, lens, named)


def _expect(
    path: Path,
    arrays: dict[str, npt.NDArray[Any]],
    name: str,
    wanted: str,
    types: Container[str],
    ndim: int,
) -> None:
    array = arrays[name]
    if array.dtype.char not in types or array.ndim != ndim:
        got = f"{array.dtype} {array.shape}"
        raise ValueError(f"{path}: `{name}` must be {wanted}; got {got}")


def _load_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(path) as file:
            names = list(file)
            arrays = {
                name: file[name] for name in ("embeddings", "doclens", "ids") if name in names
            }
    except (ValueError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a readable .npz file ({error})") from error
    for name in ("embeddings", "doclens"):
        if name not in arrays:
            found = ", ".join(names) or "none"
            raise ValueError(f"{path}: wanted the arrays embeddings and doclens; got {found}")
    return arrays


def _load_npy(path: Path) -> npt.NDArray[Any]:
    try:
        return cast("npt.NDArray[Any]", np.load(path, mmap_mode="r"))
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a readable .npy file ({error})") from error
