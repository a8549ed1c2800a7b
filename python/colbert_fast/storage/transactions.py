"""Atomic commits: new files first, then the manifest that names them, renamed over the old one.

A folder or file that a manifest names is never changed, and its name never used again. So a reader
keeps the generation it opened: its maps and connections hold files that have been removed since.
(Where the system refuses to remove an open file, a later commit does.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from colbert_fast.errors import IndexBusyError, IndexExistsError, IndexFormatError
from colbert_fast.storage.files import FileRecord, record_files, sync_files, sync_folder
from colbert_fast.storage.lock import LOCK, writer_lock
from colbert_fast.storage.manifest import MAX_DOCUMENTS, NAME, TUNING, Manifest, is_manifest
from colbert_fast.storage.spill import SPILL

__all__ = ["ENCODED", "Transaction", "building", "check_target", "is_building", "update"]

logger = logging.getLogger(__name__)

_BUILDING = ".building"
_ATTEMPTS = 10
ENCODED = "encoded"
_TEMPORARY = (f"{NAME}.new", SPILL, ENCODED)
# What a commit may leave behind; nothing else in the folder is ever removed.
_OURS = re.compile(r"(codec|segment|deleted)-(?P<number>\d{6,})(\.npy)?")


class Transaction:
    """New files in the folder of an index, and the manifest that will name them.

    Attributes
    ----------
    folder
        The index.
    base
        The generation to go on from; None in a fresh folder.
    first_number
        From this on names are its own.
    """

    def __init__(self, folder: Path, base: Manifest | None) -> None:
        self.folder = folder
        self.base = base
        self._known = {} if base is None else dict(base.files)
        self.first_number = self._number = _first_number(folder, base)

    def new_name(self, kind: str) -> str:
        """A name for a folder or file of this kind (codec, segment or deleted)."""
        self._number += 1
        return f"{kind}-{self._number - 1:06d}"

    def new_folder(self, kind: str) -> Path:
        """A new folder of this kind."""
        folder = self.folder / self.new_name(kind)
        folder.mkdir()
        return folder

    def adopt(self, files: Mapping[str, FileRecord]) -> None:
        """Take files as synced and recorded already."""
        self._known.update(files)

    def commit(self, manifest: Manifest) -> Manifest:
        """Sync and record the files of `manifest`, and make it the index's.

        Its generation, next_number and files are filled in here.
        """
        if manifest.num_rows > MAX_DOCUMENTS:
            raise ValueError(
                f"{self.folder}: {manifest.num_rows} documents, deleted ones included; an index "
                f"holds at most {MAX_DOCUMENTS}: compact it or build several"
            )
        known = self._known
        names = [*self._files_of(manifest.codec_folder)]
        for segment in manifest.segments:
            names += self._files_of(segment.name)
            names += [] if segment.deleted is None else [segment.deleted]
        fresh = [name for name in names if name not in known]
        sync_files(self.folder, fresh)
        sync_folder(self.folder)
        recorded = record_files(self.folder, fresh)
        committed = dataclasses.replace(
            manifest,
            generation=1 if self.base is None else self.base.generation + 1,
            next_number=self._number,
            files={name: known.get(name) or recorded[name] for name in names},
        )
        committed.write(self.folder)
        if self.base is None or self.base.lineage != manifest.lineage:
            (self.folder / TUNING).unlink(missing_ok=True)
        return committed

    def _files_of(self, folder: str) -> list[str]:
        named = [name for name in self._known if name.startswith(f"{folder}/")]
        return named or sorted(f"{folder}/{each.name}" for each in (self.folder / folder).iterdir())


def _first_number(folder: Path, base: Manifest | None) -> int:
    """The first that neither a manifest nor the leftovers of a commit that failed have used."""
    found = (_OURS.fullmatch(each.name) for each in folder.iterdir())
    used = (int(match["number"]) + 1 for match in found if match)
    return max(0 if base is None else base.next_number, *used, 0)


@contextlib.contextmanager
def update(folder: Path, *, timeout: float = 0.0) -> Iterator[tuple[Transaction, Manifest]]:
    """Change an index under its writer's lock; without a commit nothing of it remains.

    Yields the transaction and the generation that it goes on from.

    Raises
    ------
    IndexFormatError
        There is no index.
    IndexBusyError
        Another writer has it, after `timeout` seconds still.
    """
    Manifest.read(folder)  # before a lock file is put somewhere else
    with writer_lock(folder, timeout):
        base = Manifest.read(folder)
        transaction = Transaction(folder, base)
        try:
            yield transaction, base
        except BaseException:
            # The manifest may be in its place and yet not on disk, so nothing older goes.
            collect(folder, transaction.first_number)
            raise
        collect(folder)


def collect(folder: Path, first_number: int = 0) -> None:
    """Remove what earlier generations and failed commits have left in the folder of an index.

    With `first_number`, only what has a number from there on.
    """
    try:
        manifest = Manifest.read(folder)
        kept = _named_by(manifest)
        for entry in folder.iterdir():
            found = _OURS.fullmatch(entry.name)
            ours = entry.name in _TEMPORARY or (found and int(found["number"]) >= first_number)
            if ours and entry.name not in kept:
                _remove_if_possible(entry)
    except (OSError, IndexFormatError) as error:
        logger.warning("%s: files of earlier generations were not removed: %s", folder, error)


def _remove_if_possible(entry: Path) -> None:
    try:
        _remove(entry)
    except OSError as error:  # of no consequence, and the next commit tries again
        logger.warning("%s is of an earlier generation and was not removed: %s", entry, error)


def _named_by(manifest: Manifest) -> set[str]:
    """What a generation consists of, as names in the index folder."""
    kept = {NAME, manifest.codec_folder}
    for segment in manifest.segments:
        kept |= {segment.name, segment.deleted or segment.name}
    return kept


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=os.name == "nt")
    else:
        entry.unlink()


def is_building(path: Path) -> bool:
    """Whether `path` is named like the folder of an unfinished build."""
    return path.name.endswith(_BUILDING)


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
            f"path {str(path)!r}: names that end in {_BUILDING!r} are kept for unfinished builds"
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
    if path.is_symlink():
        raise IndexExistsError(
            f"path {str(path)!r} is a symbolic link, which overwrite=True does not follow; pass "
            f"the folder that it leads to, {str(path.readlink())!r}"
        )
    if not _looks_like_index(path):
        raise IndexExistsError(
            f"path {str(path)!r} exists and is not a colbert_fast index; overwrite=True replaces "
            "only an index (or an empty folder): remove it yourself or choose another path"
        )


def _looks_like_index(path: Path) -> bool:
    return path.is_dir() and (is_manifest(path / NAME) or not any(path.iterdir()))


@contextlib.contextmanager
def building(path: Path, *, overwrite: bool, resume: bool) -> Iterator[Transaction]:
    """Yield a transaction in a folder beside `path`; what it committed then takes its place.

    The folder is `path` with ".building" added. On any exception, Ctrl-C included, it is removed,
    and what was at `path` stays as it was. With `resume` its subfolder `ENCODED` stays for a later
    attempt, as everything does when the process is killed, and an earlier attempt's is there.

    Raises
    ------
    IndexBusyError
        Another build for this path is running.
    """
    check_target(path, overwrite=overwrite)
    folder = path.with_name(path.name + _BUILDING)
    with _build_lock(folder, path):
        _clear(folder, {LOCK, ENCODED} if resume else {LOCK})
        try:
            yield Transaction(folder, None)
            _clear(folder, {LOCK, ENCODED, *_named_by(Manifest.read(folder))})
            _move_into_place(folder, path, overwrite=overwrite)
        except BaseException:
            if resume:
                _clear(folder, {LOCK, ENCODED})
            else:
                shutil.rmtree(folder, ignore_errors=True)
            raise


@contextlib.contextmanager
def _build_lock(folder: Path, path: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for attempt in range(_ATTEMPTS):
            folder.mkdir(exist_ok=True)
            try:
                stack.enter_context(writer_lock(folder))
                break
            except FileNotFoundError:  # another build has ended, and its folder was moved
                if attempt == _ATTEMPTS - 1:
                    raise
            except IndexBusyError:
                raise IndexBusyError(
                    f"another build for {str(path)!r} is running; wait until it has ended"
                ) from None
        yield


def _clear(folder: Path, kept: set[str]) -> None:
    """Remove everything but what is `kept`."""
    if folder.is_dir():  # it may have been moved into place before an interrupt
        for entry in folder.iterdir():
            if entry.name not in kept:
                _remove(entry)


def _move_into_place(folder: Path, path: Path, *, overwrite: bool) -> None:
    check_target(path, overwrite=overwrite)  # someone may have built there in the meantime
    if path.exists() and any(path.iterdir()):
        _replace(folder, path)
        return
    if path.exists():
        path.rmdir()  # systems differ in whether a rename replaces an empty folder
    folder.rename(path)
    sync_folder(path.parent)
    collect(path)  # what was kept for a later attempt, as this one might have failed until now


def _replace(folder: Path, path: Path) -> None:
    """Move the folders of a finished build into the index at `path`, as its next generation."""
    with writer_lock(path, timeout=math.inf):
        try:
            base = Manifest.read(path)
        except IndexFormatError:  # damaged, or of an older format: it is to be replaced
            base = None
        built = Manifest.read(folder)
        transaction = Transaction(path, base)
        renamed = {}
        try:
            for name in (built.codec_folder, *(each.name for each in built.segments)):
                renamed[name] = transaction.new_name(name.partition("-")[0])
                (folder / name).rename(path / renamed[name])
            moved = {}
            for name, record in built.files.items():
                home, _, rest = name.partition("/")
                moved[f"{renamed[home]}/{rest}"] = record
            transaction.adopt(moved)
            segments = (
                dataclasses.replace(each, name=renamed[each.name]) for each in built.segments
            )
            transaction.commit(
                dataclasses.replace(
                    built, codec_folder=renamed[built.codec_folder], segments=tuple(segments)
                )
            )
        except BaseException:
            collect(path, transaction.first_number)
            raise
        collect(path)
    shutil.rmtree(folder, ignore_errors=True)
