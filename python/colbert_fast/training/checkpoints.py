"""The folders of a training run: complete, or not there at all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from colbert_fast.model import ColBERT
from colbert_fast.model.checkpoint import load_checkpoint
from colbert_fast.storage.files import sync_files, sync_folder

__all__ = [
    "FINAL",
    "UNFINISHED",
    "appear",
    "average_weights",
    "checkpoints",
    "load_weights",
    "prune",
    "read_weights_of",
]

FINAL = "final"
UNFINISHED = ".unfinished"
"""Where folders are written before they get their names, and go before they are removed."""


def checkpoints(output: Path) -> dict[int, Path]:
    """The checkpoints of a run by step, ascending."""
    found = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in output.iterdir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))


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
    """The mean of saved models' weights, summed in float64; tables of integers are the first's."""
    mean = read_weights_of(folders[0])
    sums = {key: value.double() for key, value in mean.items() if value.is_floating_point()}
    for folder in folders[1:]:
        weights = read_weights_of(folder)
        for key, value in sums.items():
            value += weights[key]
    for key, value in sums.items():
        mean[key] = (value / len(folders)).to(torch.float32)
    return mean
