"""Files that appear complete or not at all; optional packages, and the files of one of them."""

from __future__ import annotations

import importlib
import math
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from colbert_fast.errors import IndexBusyError, MissingDependencyError
from colbert_fast.storage.files import sync_files, sync_folder
from colbert_fast.storage.lock import writer_lock

__all__ = ["DATASET_FILES", "is_dataset", "open_dataset", "replacing", "require"]

DATASET_FILES = ("dataset_info.json", "dataset_dict.json")
"""In the folders that `datasets` saves: one of them, a dataset's or that of several splits."""

_OLD = "old"  # in a writer's room: the folder that it replaces


@contextmanager
def replacing(path: Path, *, folder_with: str | None = None) -> Iterator[Path]:
    """A name to write a file or folder under, which becomes `path` unless the block fails.

    Processes may write the same at once: each has its own name, and the last one's stays (of
    folders that end at the same moment one may fail). What a killed one has left beside `path` is
    removed, or put back, by the next.

    Parameters
    ----------
    path
        What is to be written; a file there is replaced.
    folder_with
        Write a folder. One at `path` is replaced if it holds a file of this name, so that nobody
        loses a folder of something else.

    Raises
    ------
    FileExistsError
        Something is at `path` that is not to be replaced.
    """
    _collect(path)
    _check_replaceable(path, folder_with)
    with _room(path) as room:
        partial = room / path.name
        yield partial
        if folder_with is None:
            sync_files(room, [partial.name])
            partial.replace(path)
        else:
            names = [str(file.relative_to(partial)) for file in partial.rglob("*")]
            sync_files(partial, [name for name in names if (partial / name).is_file()])
            _exchange(partial, path)
        sync_folder(path.parent)


@contextmanager
def _room(path: Path) -> Iterator[Path]:
    """A folder beside `path` whose lock says that its writer is alive."""
    with ExitStack() as stack:
        while True:
            room = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
            room.mkdir()
            stack.callback(_clear, room, path)
            try:
                stack.enter_context(writer_lock(room, timeout=math.inf))
                break
            except FileNotFoundError:
                continue  # not locked yet, it looked like a dead writer's to another one
        yield room


def _collect(path: Path) -> None:
    """Clear the rooms of writers that were killed."""
    name = re.compile(re.escape(path.name) + r"\.[0-9a-f]{32}\.partial")
    rooms = [each for each in path.parent.iterdir() if name.fullmatch(each.name) and each.is_dir()]
    for room in rooms:
        with suppress(IndexBusyError, FileNotFoundError, PermissionError), writer_lock(room):
            _clear(room, path)


def _clear(room: Path, path: Path) -> None:
    """Remove a writer's room; the folder that it had put aside goes back if none is at `path`."""
    old = room / _OLD
    if old.exists() and not path.exists():
        with suppress(FileNotFoundError):  # another writer has put it back
            old.replace(path)
            sync_folder(path.parent)
    shutil.rmtree(room, ignore_errors=True)


def _exchange(partial: Path, path: Path) -> None:
    """Put a folder at `path`; what is there stays whole in the room until the new one is there."""
    if path.exists():
        path.replace(partial.with_name(_OLD))
    partial.replace(path)


def _check_replaceable(path: Path, folder_with: str | None) -> None:
    if folder_with is None:
        if path.is_dir():
            raise FileExistsError(f"{path}: a folder is there, where a file is to be written")
    elif path.exists() and not (path / folder_with).is_file():
        raise FileExistsError(f"{path}: something else is there already (no {folder_with} in it)")


def require(name: str, purpose: str) -> Any:
    """Import a package of the extra ``train``.

    Raises
    ------
    MissingDependencyError
        It is not installed; `purpose` says what needs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"{purpose} needs the package {name.split('.')[0]}; install it with: "
            'pip install "colbert-fast[train]"'
        ) from error


def is_dataset(path: Path) -> bool:
    """Whether `path` is a parquet file or a folder saved by `datasets`."""
    return path.suffix == ".parquet" or any((path / name).is_file() for name in DATASET_FILES)


def open_dataset(path: Path) -> Any:
    """Map a parquet file or a folder saved by `datasets`; of several splits, the one named train.

    Raises
    ------
    MissingDependencyError
        The package is not installed.
    FileNotFoundError, ValueError
        `path` is none of these, is damaged, or has no such split.
    """
    datasets = require("datasets", f"reading {path}")
    if path.is_dir():
        data = datasets.load_from_disk(str(path))
        if isinstance(data, datasets.DatasetDict):
            if "train" not in data:
                raise ValueError(f"{path}: no split 'train', only {', '.join(data)}")
            data = data["train"]
        return data.with_format(None)
    try:
        return datasets.Dataset.from_parquet(str(path))
    except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise ValueError(f"{path}: not a readable parquet file ({error})") from error
