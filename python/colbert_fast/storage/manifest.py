"""manifest.json: what an index is, and the size and checksum of every other file in it."""

from __future__ import annotations

import dataclasses
import glob
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from colbert_fast._version import __version__
from colbert_fast.errors import IndexFormatError

if TYPE_CHECKING:
    from colbert_fast.model import ColBERT

__all__ = [
    "CODECS",
    "FORMAT",
    "NAME",
    "OLD",
    "STORE",
    "VERSION",
    "CodecName",
    "FileRecord",
    "Manifest",
    "SegmentRecord",
    "fingerprint_of",
    "library_version",
    "record_files",
]

CodecName = Literal["default", "plaid", "float16"]
CODECS: tuple[CodecName, ...] = ("default", "plaid", "float16")

FORMAT = "colbert_fast"
VERSION = 2
NAME = "manifest.json"
STORE = "documents.sqlite"
OLD = ".old-"  # marks the folder of an index that is being replaced
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """Size in bytes and CRC-32 (zlib) of one file."""

    size: int
    crc32: int


@dataclasses.dataclass(frozen=True)
class SegmentRecord:
    """One immutable segment folder."""

    name: str
    num_documents: int
    num_tokens: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json; `nbits` is 16 for the float16 codec.

    `model` is the name or path that finds the encoder again, or None if the index was built from
    embeddings. `files` maps each path inside the index (with ``/``) to its record.
    `model_fingerprint` tells weights of one name apart; None where it is not known, and older
    manifests lack it.
    """

    codec: CodecName
    nbits: int
    dim: int
    num_centroids: int
    num_documents: int
    num_tokens: int
    segments: tuple[SegmentRecord, ...]
    model: str | None
    files: Mapping[str, FileRecord]
    created_at: str
    library_version: str
    model_fingerprint: str | None = None

    def write(self, folder: Path) -> None:
        """Write manifest.json into `folder`."""
        contents = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        text = json.dumps(contents, indent=2, ensure_ascii=False)
        (folder / NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check ``folder/manifest.json``.

        Raises
        ------
        IndexFormatError
            The file is missing, not ours, of a newer version, or damaged; the message names it.
        """
        path = folder / NAME
        contents = _read_json(path)
        if contents.pop("format", None) != FORMAT:
            raise IndexFormatError(f'{path}: not a {FORMAT} index ("format" is not "{FORMAT}")')
        version = contents.pop("version", None)
        if not _is_count(version) or version < 1:
            raise IndexFormatError(f'{path}: "version" must be a positive integer, got {version!r}')
        if version > VERSION:
            raise IndexFormatError(
                f"{path}: index format version {version}, this library reads up to {VERSION}; "
                "upgrade colbert_fast"
            )
        if version < VERSION:
            raise IndexFormatError(
                f"{path}: index format version {version} was never released and is not read any "
                "more; build the index again"
            )
        return cls._from_json(contents, path)

    @classmethod
    def _from_json(cls, contents: dict[str, Any], path: Path) -> Manifest:
        values = dict(_checked({"model_fingerprint": None, **contents}, _FIELDS, path))
        values["segments"] = tuple(
            SegmentRecord(**_checked(entry, _SEGMENT_FIELDS, path)) for entry in values["segments"]
        )
        values["files"] = {
            _checked_name(name, path): FileRecord(**_checked(entry, _FILE_FIELDS, path))
            for name, entry in values["files"].items()
        }
        manifest = cls(**values)
        manifest._check_values(path)
        return manifest

    def _check_values(self, path: Path) -> None:
        if self.codec not in CODECS:
            raise IndexFormatError(
                f"{path}: unknown codec {self.codec!r}, expected one of {CODECS}"
            )
        for name in ("nbits", "dim", "num_centroids", "num_documents", "num_tokens"):
            if getattr(self, name) < 1:
                raise IndexFormatError(f'{path}: "{name}" must be at least 1')
        if STORE not in self.files:
            raise IndexFormatError(f'{path}: "files" does not list {STORE}')
        if len(self.segments) != 1:
            raise IndexFormatError(
                f"{path}: version {VERSION} has one segment, got {len(self.segments)}"
            )
        segment = self.segments[0]
        _checked_name(segment.name, path)
        if (segment.num_documents, segment.num_tokens) != (self.num_documents, self.num_tokens):
            raise IndexFormatError(f"{path}: the segments do not add up to the index's totals")

    def summary(self, folder: Path) -> dict[str, Any]:
        """Sizes and settings of the index in `folder`.

        ``bytes_per_token`` counts all files, ``vector_bytes_per_token`` all but the document store
        (ids, texts, metadata); the compression ratios compare the latter with uncompressed vectors.
        """
        total = (folder / NAME).stat().st_size + sum(each.size for each in self.files.values())
        vectors = total - self.files[STORE].size
        return {
            "documents": self.num_documents,
            "tokens": self.num_tokens,
            "dim": self.dim,
            "codec": self.codec,
            "nbits": self.nbits,
            "centroids": self.num_centroids,
            "bytes": total,
            "bytes_per_token": total / self.num_tokens,
            "vector_bytes_per_token": vectors / self.num_tokens,
            "compression_vs_float32": 4 * self.dim * self.num_tokens / vectors,
            "compression_vs_float16": 2 * self.dim * self.num_tokens / vectors,
            "model": self.model,
            "created_at": self.created_at,
            "library_version": self.library_version,
        }

    def check_model(self, model: ColBERT) -> None:
        """Raise ValueError if `model` has another dim or other weights than built the index."""
        if model.dim != self.dim:
            raise ValueError(
                f"model: its dim is {model.dim}, the index has dim {self.dim}; pass the model that "
                f"the index was built with ({self.model or 'not recorded'})"
            )
        found = None if self.model_fingerprint is None else fingerprint_of(model)
        if found not in (None, self.model_fingerprint):
            raise ValueError(
                "model: the index was built with other weights (fingerprint "
                f"{self.model_fingerprint}, this model has {found}); pass the model that it was "
                f"built with ({self.model}), or build the index again with this one"
            )

    def check_sizes(self, folder: Path) -> None:
        """Compare the size of every file with its record (cheap: nothing is read)."""
        for name, record in self.files.items():
            path = folder / name
            try:
                size = path.stat().st_size
            except OSError as error:
                raise IndexFormatError(f"{path}: {error.strerror or error}") from error
            if size != record.size:
                raise IndexFormatError(
                    f"{path}: {size} bytes, the manifest says {record.size}: truncated or replaced"
                )

    def check_checksums(self, folder: Path) -> None:
        """Read every file and compare its checksum with its record."""
        self.check_sizes(folder)
        for name, record in self.files.items():
            path = folder / name
            found = _crc32(path)
            if found != record.crc32:
                raise IndexFormatError(
                    f"{path}: checksum {found:08x}, the manifest says {record.crc32:08x}: corrupt"
                )


def record_files(folder: Path, names: Iterable[str]) -> dict[str, FileRecord]:
    """Size and checksum of each named file of `folder`, in the order given."""
    return {
        name: FileRecord((folder / name).stat().st_size, _crc32(folder / name)) for name in names
    }


def fingerprint_of(model: object) -> str | None:
    """What tells the model's weights from others of the same name, if it can tell."""
    fingerprint = getattr(model, "fingerprint", None)
    return None if fingerprint is None else str(fingerprint())


def library_version() -> str:
    """The version of colbert_fast that runs."""
    return __version__


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise IndexFormatError(
            f"{path}: no such file; {str(path.parent)!r} is not an index{_replaced(path.parent)}"
        ) from error
    except NotADirectoryError as error:
        raise IndexFormatError(f"{path.parent}: a file, not the folder of an index") from error
    except (OSError, ValueError, RecursionError) as error:
        raise IndexFormatError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(contents, dict):
        raise IndexFormatError(f"{path}: expected a JSON object, got {type(contents).__name__}")
    return contents


def _replaced(folder: Path) -> str:
    """Where the index is that an interrupted replacement took from `folder`, if one did."""
    for old in sorted(folder.parent.glob(f"{glob.escape(folder.name)}{OLD}*")):
        return f"; {str(old)!r} is the one that was being replaced there: rename it back"
    return ""


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_FIELDS: dict[str, tuple[type, ...]] = {
    "codec": (str,),
    "nbits": (int,),
    "dim": (int,),
    "num_centroids": (int,),
    "num_documents": (int,),
    "num_tokens": (int,),
    "segments": (list,),
    "model": (str, type(None)),
    "files": (dict,),
    "created_at": (str,),
    "library_version": (str,),
    "model_fingerprint": (str, type(None)),
}
_SEGMENT_FIELDS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "num_documents": (int,),
    "num_tokens": (int,),
}
_FILE_FIELDS: dict[str, tuple[type, ...]] = {"size": (int,), "crc32": (int,)}


def _checked(entry: object, fields: dict[str, tuple[type, ...]], path: Path) -> dict[str, Any]:
    """`entry` if it is an object with exactly these keys and types."""
    if not isinstance(entry, dict):
        raise IndexFormatError(f"{path}: expected an object with {sorted(fields)}, got {entry!r}")
    missing, unknown = fields.keys() - entry.keys(), entry.keys() - fields.keys()
    if missing or unknown:
        raise IndexFormatError(
            f"{path}: missing keys {sorted(missing)}, unknown keys {sorted(unknown)}"
        )
    for key, types in fields.items():
        value = entry[key]
        if not isinstance(value, types) or isinstance(value, bool):
            wanted = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            raise IndexFormatError(f'{path}: "{key}" must be {wanted}, got {value!r}')
    return entry


def _checked_name(name: str, path: Path) -> str:
    """`name` if it stays inside the index folder."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in name:
        raise IndexFormatError(f"{path}: {name!r} is not a path inside the index")
    return name
