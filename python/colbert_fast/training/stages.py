"""Stages of a recipe, each in a folder of its own: kept when done, continued when not."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from colbert_fast.storage.files import sync_files
from colbert_fast.training.files import replacing

__all__ = ["Stages"]

logger = logging.getLogger(__name__)

_FILE = "stage.json"


class Stages:
    """The folder of a run, in which every stage has one.

    A stage's folder has a `stage.json` with its settings, what it was made from, and whether it is
    done. One that is done is not made again; one that was stopped is called again on its folder.

    Parameters
    ----------
    output : Path
        Made if it is not there.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        output.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        name: str,
        settings: Mapping[str, Any],
        make: Callable[[Path], None],
        *,
        after: Sequence[Path] = (),
        inputs: Sequence[Path | str | None] = (),
    ) -> Path:
        """Make a stage unless it is there.

        Parameters
        ----------
        name : str
            Of its folder.
        settings : mapping
            What decides its content; paths become strings, all else must be JSON.
        make : callable
            Gets the folder; what is in it was left by a call that did not come to its end.
        after : sequence of Path
            The folders of the stages it is made from.
        inputs : sequence of Path, str or None
            Other files and folders that it is made from, which are known by their size and time;
            names that are no paths, and None, are passed over.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        ValueError
            The folder was made with other settings or inputs; names them.
        """
        folder = self.output / name
        wanted = {
            "settings": json.loads(json.dumps(settings, default=str)),
            "after": {path.name: _digest(path) for path in after},
            "inputs": {
                str(path): _state(Path(path), self.output) for path in inputs if path is not None
            },
        }
        file = folder / _FILE
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        if found is not None:
            _check_same(folder, found, wanted)
            if found["done"]:
                logger.info("%s: there already", name)
                return folder
        folder.mkdir(parents=True, exist_ok=True)
        _write(file, {**wanted, "done": False})
        logger.info("%s: %s", name, "goes on" if found else "starts")
        start = time.monotonic()
        try:
            make(folder)
        except (KeyboardInterrupt, OSError):
            logger.warning(
                "%s: stopped; what is done is kept, and the same run goes on from there", folder
            )
            raise
        # A power cut must not leave a stage that is done without its files.
        files = [file for file in folder.rglob("*") if file.is_file()]
        sync_files(folder, [str(file.relative_to(folder)) for file in files])
        seconds = time.monotonic() - start
        _write(file, {**wanted, "done": True, "seconds": round(seconds, 1)})
        logger.info("%s: done in %.0f s", name, seconds)
        return folder


def _check_same(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    changed = [
        f"{key}: {found[part].get(key)!r} then, {wanted[part].get(key)!r} now"
        for part in ("settings", "after", "inputs")
        for key in sorted(found[part].keys() | wanted[part].keys())
        if found[part].get(key) != wanted[part].get(key)
    ]
    if changed:
        raise ValueError(
            f"{folder} was made with other settings ({'; '.join(changed)}); remove that folder to "
            "make it anew, or choose another `output`"
        )


def _digest(folder: Path) -> str:
    """Of a stage's settings and those of all before it: how long it took does not matter."""
    stage = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    text = json.dumps([stage[part] for part in ("settings", "after", "inputs")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _state(path: Path, output: Path) -> list[list[Any]]:
    """Name, size and time of each file, but for those of a run that lies in the folder."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    own = output.resolve()
    if path.resolve() in own.parents:
        files = [file for file in files if own not in file.resolve().parents]
    return [
        [str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns]
        for file in files
        if file.is_file()
    ]


def _write(file: Path, value: Mapping[str, Any]) -> None:
    with replacing(file) as partial:
        partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
