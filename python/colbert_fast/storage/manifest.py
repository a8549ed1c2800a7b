"""manifest.json: what an index is, and the size and checksum of every other file in it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from colbert_fast._version import __version__
from colbert_fast.errors import IndexFormatError
from colbert_fast.storage.files import CHECKED, FileRecord, named_error, sync_folder

__all__ = [
    "CODECS",
    "FORMAT",
    "MAX_DOCUMENTS",
    "NAME",
    "STORE",
    "TUNING",
    "VERSION",
    "CodecName",
    "Manifest",
    "SegmentRecord",
    "is_manifest",
    "library_version",
    "new_lineage",
]

CodecName = Literal["default", "plaid", "float16"]
CODECS: tuple[CodecName, ...] = ("default", "plaid", "float16")

FORMAT = "colbert_fast"
VERSION = 3
NAME = "manifest.json"
STORE = "documents.sqlite"  # one in each segment
TUNING = "tuning.json"  # not listed: it may come and go
MAX_DOCUMENTS = 2**31 - 1  # positions are int32 in the lists and in the search


@dataclasses.dataclass(frozen=True)
class SegmentRecord:
    """One immutable segment folder, and which of its documents are deleted.

    Attributes
    ----------
    name
        The folder.
    num_documents, num_tokens
        In its files, deleted documents included.
    num_centroids
        When it was written: its codes are below it. Later centroids have higher numbers.
    residual_norm
        Mean distance of its vectors from their centroids.
    num_deleted, deleted
        How many documents are deleted, and the file that marks them; None if there are none.
    """

    name: str
    num_documents: int
    num_tokens: int
    num_centroids: int
    residual_norm: float
    num_deleted: int = 0
    deleted: str | None = None


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json: one generation of an index.

    Attributes
    ----------
    lineage
        A random name that all generations share until the vectors are encoded anew.
    generation
        Counts the commits.
    next_number
        For the name of the next folder or file: none is ever used again, so that nobody who has
        read an older manifest can open something newer under a name in it.
    next_id
        One above the largest number that was ever a document's id, and the next default id.
    codec, nbits, dim, num_centroids
        How vectors are stored; `nbits` is 16 for the float16 codec.
    codec_folder
        The folder of the codec's files.
    residual_norm
        Mean distance from the centroids of vectors held out when these were fitted.
    segments
        In the order of the documents' positions.
    model
        The name or path that finds the encoder again, or None if there was none.
    files
        The record of every other file by its path inside the index (with ``/``).
    created_at, library_version
        Of the first generation, and of the library that wrote this one.
    model_fingerprint
        Tells weights of one name apart; None where it is not known.
    model_settings
        What cut texts into tokens; see `ModelRecord`.
    """

    lineage: str
    generation: int
    next_number: int
    next_id: int
    codec: CodecName
    nbits: int
    dim: int
    num_centroids: int
    codec_folder: str
    residual_norm: float
    segments: tuple[SegmentRecord, ...]
    model: str | None
    files: Mapping[str, FileRecord]
    created_at: str
    library_version: str
    model_fingerprint: str | None = None
    model_settings: Mapping[str, Any] | None = None

    @property
    def num_rows(self) -> int:
        """Documents in all segments, deleted ones included."""
        return sum(each.num_documents for each in self.segments)

    @property
    def num_documents(self) -> int:
        """Documents that a search can find."""
        return sum(each.num_documents - each.num_deleted for each in self.segments)

    @property
    def num_tokens(self) -> int:
        """Tokens in all segments, those of deleted documents included."""
        return sum(each.num_tokens for each in self.segments)

    def has_codec_of(self, other: Manifest) -> bool:
        """Whether both generations, of an index at one path, have the same codec's files."""
        return (self.lineage, self.codec_folder) == (other.lineage, other.codec_folder)

    def write(self, folder: Path) -> None:
        """Write manifest.json into `folder`, in one step and for good."""
        body = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)[2:] + "\n"
        head = _HEAD.format(format=FORMAT, version=VERSION, crc32=zlib.crc32(body.encode()))
        fresh = folder / f"{NAME}.new"
        try:
            with fresh.open("wb") as file:
                file.write((head + body).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise named_error(error, fresh) from error
        fresh.replace(folder / NAME)
        sync_folder(folder)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check ``folder/manifest.json``.

        Raises
        ------
        IndexFormatError
            The file is missing, not ours, of a newer version, or damaged; the message names it.
        """
        path = folder / NAME
        data = _read(path)
        head, _, body = data.partition(b"\n")
        found = _HEAD_PATTERN.fullmatch(head)
        if found is None:
            raise IndexFormatError(f"{path}: not the manifest of a {FORMAT} index")
        version = int(found["version"])
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
        if zlib.crc32(body) != int(found["crc32"], 16):
            raise IndexFormatError(f"{path}: does not match its checksum: corrupt")
        try:
            return cls._from_json(json.loads(b"{" + body), path)
        except (ValueError, RecursionError) as error:
            if isinstance(error, IndexFormatError):
                raise
            raise IndexFormatError(f"{path}: cannot be read as JSON ({error})") from error

    @classmethod
    def _from_json(cls, contents: dict[str, Any], path: Path) -> Manifest:
        values = _checked({"model_settings": None, **contents}, _FIELDS, path)
        values["segments"] = tuple(
            SegmentRecord(**_checked(entry, _SEGMENT_FIELDS, path)) for entry in values["segments"]
        )
        values["files"] = {
            _checked_name(name, path): _file_record(entry, path)
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
        for name in ("generation", "nbits", "dim", "num_centroids"):
            if getattr(self, name) < 1:
                raise IndexFormatError(f'{path}: "{name}" must be at least 1')
        _checked_name(self.codec_folder, path)
        for segment in self.segments:
            _checked_name(segment.name, path)
            if f"{segment.name}/{STORE}" not in self.files:
                raise IndexFormatError(f'{path}: "files" does not list {segment.name}/{STORE}')
            if not 1 <= segment.num_documents <= segment.num_tokens:
                raise IndexFormatError(
                    f"{path}: {segment.name} has {segment.num_documents} documents of "
                    f"{segment.num_tokens} tokens"
                )
            if not 1 <= segment.num_centroids <= self.num_centroids:
                raise IndexFormatError(
                    f"{path}: {segment.name} has codes of {segment.num_centroids} centroids, there "
                    f"are {self.num_centroids}"
                )
            marked = segment.deleted is not None
            if not marked <= segment.num_deleted <= marked * segment.num_documents:
                raise IndexFormatError(
                    f"{path}: {segment.name} cannot have {segment.num_deleted} deleted documents"
                )
            if segment.deleted is not None and segment.deleted not in self.files:
                raise IndexFormatError(f'{path}: "files" does not list {segment.deleted}')

    def summary(self, folder: Path) -> dict[str, Any]:
        """Sizes and settings of the index in `folder`.

        ``bytes_per_token`` counts all files, ``vector_bytes_per_token`` all but the document stores
        (ids, texts, metadata); the compression ratios compare the latter with uncompressed vectors.
        ``drift`` is how far the newest segment's vectors lie from their centroids, as a multiple of
        those that the codec was fitted to.
        """
        total = (folder / NAME).stat().st_size + sum(each.size for each in self.files.values())
        stores = (self.files[f"{each.name}/{STORE}"].size for each in self.segments)
        vectors, tokens = total - sum(stores), self.num_tokens
        newest = self.segments[-1].residual_norm if self.segments else 0.0
        return {
            "documents": self.num_documents,
            "deleted": self.num_rows - self.num_documents,
            "tokens": tokens,
            "dim": self.dim,
            "codec": self.codec,
            "nbits": self.nbits,
            "centroids": self.num_centroids,
            "segments": len(self.segments),
            "generation": self.generation,
            "drift": newest / self.residual_norm if self.residual_norm else 0.0,
            "bytes": total,
            "bytes_per_token": total / tokens if tokens else 0.0,
            "vector_bytes_per_token": vectors / tokens if tokens else 0.0,
            "compression_vs_float32": 4 * self.dim * tokens / vectors,
            "compression_vs_float16": 2 * self.dim * tokens / vectors,
            "model": self.model,
            "created_at": self.created_at,
            "library_version": self.library_version,
        }


def new_lineage() -> str:
    """See `Manifest.lineage`."""
    return os.urandom(8).hex()


def library_version() -> str:
    """The version of colbert_fast that runs."""
    return __version__


def is_manifest(path: Path) -> bool:
    """Whether `path` is a manifest of this library, of whatever version and however damaged."""
    try:
        with path.open("rb") as file:
            return file.read(len(_FIRST)) == _FIRST
    except OSError:
        return False


_FIRST = f'{{"format": "{FORMAT}"'.encode()
# The first line, which the checksum of all others is in.
_HEAD = '{{"format": "{format}", "version": {version}, "crc32": "{crc32:08x}",\n'
_HEAD_PATTERN = re.compile(
    rb'\{"format": "colbert_fast", "version": (?P<version>\d{1,9}), '
    rb'"crc32": "(?P<crc32>[0-9a-f]{8})",'
)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        others = ", and Index.import_from takes over those of other libraries"
        raise IndexFormatError(
            f"{path}: no such file; {str(path.parent)!r} is not an index"
            f"{others if path.parent.is_dir() else ''}"
        ) from error
    except NotADirectoryError as error:
        raise IndexFormatError(f"{path.parent}: a file, not the folder of an index") from error
    except OSError as error:
        raise IndexFormatError(f"{path}: {error.strerror or error}") from error


_FIELDS: dict[str, tuple[type, ...]] = {
    "lineage": (str,),
    "generation": (int,),
    "next_number": (int,),
    "next_id": (int,),
    "codec": (str,),
    "nbits": (int,),
    "dim": (int,),
    "num_centroids": (int,),
    "codec_folder": (str,),
    "residual_norm": (float,),
    "segments": (list,),
    "model": (str, type(None)),
    "files": (dict,),
    "created_at": (str,),
    "library_version": (str,),
    "model_fingerprint": (str, type(None)),
    "model_settings": (dict, type(None)),
}
_SEGMENT_FIELDS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "num_documents": (int,),
    "num_tokens": (int,),
    "num_centroids": (int,),
    "residual_norm": (float,),
    "num_deleted": (int,),
    "deleted": (str, type(None)),
}
_FILE_FIELDS: dict[str, tuple[type, ...]] = {"size": (int,), "crc32": (list,)}


def _file_record(entry: object, path: Path) -> FileRecord:
    values = _checked(entry, _FILE_FIELDS, path)
    record = FileRecord(values["size"], tuple(values["crc32"]))
    if len(record.crc32) != -(-record.size // CHECKED):
        raise IndexFormatError(f"{path}: {len(record.crc32)} checksums for {record.size} bytes")
    return record


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
