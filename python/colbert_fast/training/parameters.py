"""What of a model a run trains, and with which dropout; afterwards all is as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch

from colbert_fast.model import ColBERT

__all__ = ["dropout", "frozen_parameters", "without_gradient"]


def frozen_parameters(model: ColBERT, patterns: Sequence[str]) -> list[torch.nn.Parameter]:
    """What is not trained: what is named, and the pooler, which late interaction has no use for."""
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in parameters):
            raise ValueError(
                f"frozen: {pattern!r} matches no parameter; they have names like "
                f"{next(iter(parameters))!r}"
            )
    found = [
        parameter
        for name, parameter in parameters.items()
        if any(fnmatchcase(name, pattern) for pattern in (*patterns, "backbone.pooler.*"))
    ]
    if len(found) == len(parameters):
        raise ValueError(f"frozen: {patterns} leaves nothing to train")
    return found


@contextmanager
def without_gradient(parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """No gradient for these, until the end."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def dropout(model: ColBERT, share: float | None) -> Iterator[None]:
    """Every dropout layer at `share`, until the end; None leaves them."""
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Dropout)]
    before = [layer.p for layer in layers]
    try:
        for layer in layers:
            layer.p = layer.p if share is None else share
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.p = own
