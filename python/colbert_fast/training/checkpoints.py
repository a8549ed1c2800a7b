"""The folders of a training run: complete, or not there at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from colbert_fast.errors import IndexBusyError
from colbert_fast.model import ColBERT
from colbert_fast.model.checkpoint import load_checkpoint
from colbert_fast.model.weights import mean_weights
from colbert_fast.storage.files import sync_files, sync_folder
from colbert_fast.storage.lock import LOCK, writer_lock
from colbert_fast.training.batches import ExampleLike
from colbert_fast.training.config import TrainingConfig

__all__ = [
    "FINAL",
    "RECORD",
    "UNFINISHED",
    "appear",
    "average_weights",
    "checkpoints",
    "describe_run",
    "digest_of_ends",
    "disk_errors",
    "load_weights",
    "opened",
    "prune",
    "read_weights_of",
]

FINAL = "final"
RECORD = "training.json"
"""What a saved model was trained with, in its folder."""
UNFINISHED = ".unfinished"
"""Where folders are written before they get their names, and go before they are removed."""

# A run that is resumed may have other values of these; they do not change the result.
_FREE = ("workers", "logging_steps", "tensorboard")

# Seconds. The processes of a killed run that read its data hold its lock until they notice.
_PATIENCE = 10.0


def checkpoints(output: Path) -> dict[int, Path]:
    """The checkpoints of a run by step, ascending."""
    found = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in output.iterdir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def digest_of_ends(data: Sequence[ExampleLike]) -> str:
    """Of the first and the last example: data may be too large to be read for this."""
    ends = [
        (each.query, [*each.documents], None if each.scores is None else [*map(float, each.scores)])
        for each in (data[0], data[len(data) - 1])
    ]
    return hashlib.sha256(json.dumps(ends).encode()).hexdigest()[:16]


def describe_run(
    model: ColBERT, data: Sequence[ExampleLike], config: TrainingConfig, processes: int
) -> dict[str, Any]:
    """What a run is recognised by: see `train`."""
    described = {
        "model": model.eval().fingerprint(),
        "model_config": dataclasses.asdict(model.config),
        "examples": len(data),
        "first_and_last": digest_of_ends(data),
        "processes": processes,
        "config": dataclasses.asdict(config),
    }
    record: dict[str, Any] = json.loads(json.dumps(described))  # lists in place of tuples
    return record


@contextmanager
def opened(output: Path, record: dict[str, Any], *, resume: bool) -> Iterator[Path | None]:
    """Hold the folder of a run; the checkpoint or final model to go on from, if there is one.

    A finished run's folder is only read.
    """
    output.mkdir(parents=True, exist_ok=True)
    if not resume and {path.name for path in output.iterdir()} - {UNFINISHED, LOCK}:
        raise FileExistsError(f"{output} is not empty; choose another folder or pass resume=True")
    with ExitStack() as held:
        if not (output / FINAL).is_dir():
            try:
                held.enter_context(writer_lock(output, timeout=_PATIENCE))
            except IndexBusyError as error:
                raise TimeoutError(f"output_dir: another process trains in {output}") from error
        last = _last(output)
        if last is not None:
            _check_record(last / RECORD, record)
        if last != output / FINAL:
            shutil.rmtree(output / UNFINISHED, ignore_errors=True)
            (output / UNFINISHED).mkdir()
        yield last


def _last(output: Path) -> Path | None:
    if (output / FINAL).is_dir():
        return output / FINAL
    return next(reversed(checkpoints(output).values()), None)


def _check_record(path: Path, record: dict[str, Any]) -> None:
    before = json.loads(path.read_text(encoding="utf-8"))
    before, now = ({**each, **each["config"]} for each in (before, record))
    for name, new in now.items():
        old = before.get(name)
        if old != new and name not in ("config", *_FREE):
            raise ValueError(f"{name}: {path} was written with {old!r}, got {new!r}; cannot resume")


# What the writer of torch.save says.
_NOT_WRITTEN = re.compile(r"inline_container|PytorchStreamWriter|unexpected pos")


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """What torch and safetensors raise where they cannot write, a full disk say, as an OSError."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if not isinstance(error, SafetensorError) and not _NOT_WRITTEN.search(str(error)):
            raise
        raise OSError(f"{folder}: cannot be written: {error}") from error


def appear(folder: Path, target: Path) -> None:
    """Rename a folder once all of it is on the disk."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    sync_files(folder, (str(path.relative_to(folder)) for path in files))
    sync_folder(folder)
    folder.rename(target)
    sync_folder(target.parent)


def prune(output: Path, keep: Collection[int]) -> None:
    """Remove the checkpoints of other steps."""
    for step, path in checkpoints(output).items():
        if step not in keep:
            # Under another name first: half a checkpoint must not look like one.
            doomed = path.rename(output / UNFINISHED / path.name)
            shutil.rmtree(doomed)


def read_weights_of(folder: Path) -> dict[str, Tensor]:
    """The weights of a saved model under their names in a ColBERT."""
    parts = load_checkpoint(folder)
    modules = {"backbone": parts.backbone, "projection": parts.projection}
    return {
        f"{name}.{key}": weight
        for name, module in modules.items()
        for key, weight in module.state_dict().items()
    }


def load_weights(model: ColBERT, folder: Path) -> None:
    """Give a model the weights of a checkpoint of its own."""
    model.load_state_dict(read_weights_of(folder))


def average_weights(folders: Sequence[Path]) -> dict[str, Tensor]:
    """`mean_weights` of saved models."""
    return mean_weights(map(read_weights_of, folders))
