"""Atomic commit of an index folder: written beside its place, then renamed into it."""

from __future__ import annotations

import glob
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from colbert_fast.errors import IndexExistsError
from colbert_fast.storage.manifest import NAME, OLD, STORE

__all__ = ["check_target", "is_building", "replace_folder"]

logger = logging.getLogger(__name__)

_BUILDING = ".building-"


def is_building(path: Path) -> bool:
    """Whether `path` is named like the folder of an unfinished build."""
    return _BUILDING in path.name


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse a path that an index cannot be written to, before any work is done.

    Raises
    ------
    FileNotFoundError
        The parent folder is missing.
    IndexExistsError
        Something is there already and `overwrite` is false, or it is no index of this library
        (which `overwrite` never deletes).
    """
    if is_building(path):
        raise ValueError(
            f"path {str(path)!r}: names with {_BUILDING!r} are kept for unfinished builds"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"path {str(path)!r}: the folder {str(path.parent)!r} does not exist; create it first"
        )
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise IndexExistsError(
            f"path {str(path)!r} already exists; pass overwrite=True to replace the index there"
        )
    if not _looks_like_index(path):
        raise IndexExistsError(
            f"path {str(path)!r} exists and is not a colbert_fast index; overwrite=True replaces "
            "only an index (or an empty folder): remove it yourself or choose another path"
        )


def _looks_like_index(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    names = {entry.name for entry in path.iterdir()}
    return not names or {NAME, STORE} <= names


@contextmanager
def replace_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a fresh folder beside `path`; rename it to `path` unless the body raises.

    The files are synced to disk before the rename. On any exception, Ctrl-C included, the fresh
    folder is removed and what was at `path` stays as it was, unless the fresh one had taken its
    place already. A process that is killed outright leaves its ``<path>.building-*`` folder behind:
    it never opens as an index and can be deleted. Killed between the two renames of a replacement,
    or interrupted after them, it leaves the index that was replaced as ``<path>.old-*``.
    """
    check_target(path, overwrite=overwrite)
    _mention_leftovers(path)
    folder = path.with_name(f"{path.name}{_BUILDING}{secrets.token_hex(4)}")
    folder.mkdir()
    try:
        yield folder
        _sync_tree(folder)
        _move_into_place(folder, path, overwrite=overwrite)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _mention_leftovers(path: Path) -> None:
    name = glob.escape(path.name)
    for stale in path.parent.glob(f"{name}{_BUILDING}*"):
        logger.warning("%s is left from an unfinished build (or one is running)", stale)
    for stale in path.parent.glob(f"{name}{OLD}*"):
        logger.warning("%s is left from an index that was replaced; it can be deleted", stale)


def _move_into_place(folder: Path, path: Path, *, overwrite: bool) -> None:
    check_target(path, overwrite=overwrite)  # someone may have built there in the meantime
    old = path.with_name(f"{path.name}{OLD}{secrets.token_hex(4)}")
    try:
        if path.exists():
            path.rename(old)
        folder.rename(path)
    except BaseException:
        # An interrupt may come with a rename done, so what to undo is asked of the disk.
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            with Path(root, name).open("rb+") as file:
                os.fsync(file.fileno())
        _sync_folder(Path(root))


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder for syncing
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
