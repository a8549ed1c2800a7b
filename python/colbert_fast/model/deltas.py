"""What training changed of an encoder, small enough to ship: added to the weights when they load.

A matrix's change is stored as int8 with a scale for each row, which is a quarter of float32 and
loses 1/254 of a row's largest change at most; what has one dimension stays float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from colbert_fast.errors import CheckpointError

__all__ = ["add_deltas", "make_deltas"]

_SCALE = ".scale"
_LEVELS = 127


def make_deltas(base: nn.Module, trained: nn.Module) -> dict[str, Tensor]:
    """What `add_deltas` makes `trained` of `base` with.

    Parameters
    ----------
    base, trained : torch.nn.Module
        Two encoders with the same parameters.

    Returns
    -------
    dict of str to Tensor
        For each parameter that differs: int8 (rows, columns) by its name and float32 (rows,) by
        its name and ".scale", or float32 (size,).

    Raises
    ------
    ValueError
        Naming the first parameter that only one of them has, or that has another shape.
    """
    before, after = base.state_dict(), trained.state_dict()
    odd = sorted(before.keys() ^ after.keys()) or [
        name for name in before if before[name].shape != after[name].shape
    ]
    if odd:
        raise ValueError(f"base and trained are different encoders: {odd[0]!r} is not in both")
    deltas: dict[str, Tensor] = {}
    for name, old in before.items():
        change = after[name].float().cpu() - old.float().cpu()
        if not change.any():
            continue
        if change.dim() == 2:
            scale = change.abs().amax(dim=1) / _LEVELS
            deltas[name + _SCALE] = scale
            change = (change / scale.clamp(min=1e-30)[:, None]).round().to(torch.int8)
        deltas[name] = change
    return deltas


def add_deltas(encoder: nn.Module, deltas: Mapping[str, Tensor], path: Path) -> None:
    """Change the weights of `encoder` in place; `path` is named in complaints.

    Raises
    ------
    CheckpointError
        A change is for a parameter that the encoder does not have, or has in another shape.
    """
    weights = encoder.state_dict()
    for name, change in deltas.items():
        if name.endswith(_SCALE) and name.removesuffix(_SCALE) in deltas:
            continue
        weight, scale = weights.get(name), deltas.get(name + _SCALE)
        if weight is None or weight.shape != change.shape:
            raise CheckpointError(
                f"{path}: key {name!r} has shape {list(change.shape)}; in the encoder that it "
                f"changes it has {list(weight.shape) if weight is not None else 'no place'}"
            )
        if change.dtype == torch.int8:
            if scale is None or scale.shape != change.shape[:1]:
                raise CheckpointError(f"{path}: key {name + _SCALE!r} is missing or misshapen")
            change = change.float() * scale[:, None]
        with torch.no_grad():
            weight += change.to(weight)
