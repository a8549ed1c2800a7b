"""The files of an index: their sizes, checksums, and getting them onto the disk."""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from colbert_fast.errors import IndexFormatError

__all__ = [
    "CHECKED",
    "FileRecord",
    "check_checksums",
    "check_sizes",
    "damage_of",
    "named_error",
    "record_files",
    "sync_files",
    "sync_folder",
]

CHECKED = 1 << 20  # bytes under one checksum


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """Size in bytes of one file, and the CRC-32 (zlib) of each 1 MiB of it."""

    size: int
    crc32: tuple[int, ...]


def record_files(folder: Path, names: Iterable[str]) -> dict[str, FileRecord]:
    """Size and checksums of each named file of `folder`, in the order given."""
    return {
        name: FileRecord((folder / name).stat().st_size, _crc32s(folder / name)) for name in names
    }


def check_sizes(folder: Path, files: Mapping[str, FileRecord]) -> None:
    """Compare the size of every file with its record (cheap: nothing is read).

    Raises
    ------
    IndexFormatError
        A file is missing or of another size; named.
    """
    for name, record in files.items():
        _check_size(folder / name, record)


def check_checksums(folder: Path, files: Mapping[str, FileRecord]) -> None:
    """Read every file and compare its checksums with its record.

    Raises
    ------
    IndexFormatError
        A file is damaged; the message names it and the bytes among which the damage is.
    """
    for name, record in files.items():
        error = damage_of(folder / name, record)
        if error is not None:
            raise error


def damage_of(path: Path, record: FileRecord) -> IndexFormatError | None:
    """What is wrong with a file that is not as recorded.

    Raises
    ------
    OSError
        It is there and cannot be read: that says nothing about what it holds.
    """
    try:
        _check_size(path, record)
        _check_blocks(path, record)
    except IndexFormatError as error:
        return error
    return None


def named_error(error: OSError, path: Path) -> OSError:
    """The same error with the file's name, which a failed write does not carry."""
    return OSError(error.errno, error.strerror or str(error), str(path))


def _check_size(path: Path, record: FileRecord) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise IndexFormatError(f"{path}: {error.strerror}") from error
    if size != record.size:
        raise IndexFormatError(
            f"{path}: {size} bytes, the manifest says {record.size}: truncated or replaced"
        )


def _check_blocks(path: Path, record: FileRecord) -> None:
    for number, (found, wanted) in enumerate(zip(_crc32s(path), record.crc32, strict=True)):
        if found != wanted:
            start = number * CHECKED
            raise IndexFormatError(
                f"{path}: corrupt within bytes {start}..{min(start + CHECKED, record.size) - 1}: "
                f"checksum {found:08x}, the manifest says {wanted:08x}"
            )


def sync_files(folder: Path, names: Iterable[str]) -> None:
    """Have the named files of `folder`, and the folders that they are in, on disk."""
    folders = set()
    for name in names:
        with (folder / name).open("rb+") as file:
            os.fsync(file.fileno())
        folders.add((folder / name).parent)
    for each in folders:
        sync_folder(each)


def sync_folder(folder: Path) -> None:
    """Have the names in `folder` on disk."""
    if os.name == "nt":  # Windows cannot open a folder for syncing
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _crc32s(path: Path) -> tuple[int, ...]:
    values = []
    with path.open("rb") as file:
        while block := file.read(CHECKED):
            values.append(zlib.crc32(block))
    return tuple(values)
