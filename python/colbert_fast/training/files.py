"""Files that appear complete or not at all; optional packages, and the files of one of them."""

from __future__ import annotations

import importlib
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from colbert_fast.errors import MissingDependencyError
from colbert_fast.storage.files import sync_files, sync_folder

__all__ = ["DATASET_FILES", "is_dataset", "open_dataset", "replacing", "require"]

DATASET_FILES = ("dataset_info.json", "dataset_dict.json")
"""In the folders that `datasets` saves: one of them, a dataset's or that of several splits."""


@contextmanager
def replacing(path: Path, *, folder_with: str | None = None) -> Iterator[Path]:
    """A name to write a file or folder under, which becomes `path` unless the block fails.

    Processes may write the same at once: each has its own name, and the last one's stays.

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
    _check_replaceable(path, folder_with)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        if folder_with is None:
            sync_files(partial.parent, [partial.name])
            partial.replace(path)
        else:
            names = [str(file.relative_to(partial)) for file in partial.rglob("*")]
            sync_files(partial, [name for name in names if (partial / name).is_file()])
            _exchange(partial, path)
        sync_folder(path.parent)
    finally:
        _remove(partial)


def _exchange(partial: Path, path: Path) -> None:
    """Put a folder at `path`; what is there stays whole beside it until the new one is there."""
    old = partial.with_suffix(".old")
    if not path.exists():
        partial.replace(path)
        return
    path.replace(old)
    try:
        partial.replace(path)
    except BaseException:
        old.replace(path)
        raise
    _remove(old)


def _check_replaceable(path: Path, folder_with: str | None) -> None:
    if folder_with is None:
        if path.is_dir():
            raise FileExistsError(f"{path}: a folder is there, where a file is to be written")
    elif path.exists() and not (path / folder_with).is_file():
        raise FileExistsError(f"{path}: something else is there already (no {folder_with} in it)")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
