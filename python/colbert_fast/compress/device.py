"""Compression on a CUDA device: vectors go there as they are needed, and columns come back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy.typing as npt

from colbert_fast.arrays import as_array
from colbert_fast.compress.codec import Codec, Columns
from colbert_fast.kernels.cuda import check_device, import_torch

__all__ = ["BuildDevice", "check_build_device", "encoder_of", "place"]

BuildDevice: TypeAlias = Literal["cpu", "cuda"]


def check_build_device(device: str) -> None:
    """Raise unless vectors can be compressed there.

    Raises
    ------
    ValueError
        Neither "cpu" nor "cuda".
    BackendUnavailable, MissingDependencyError
        No CUDA in this build or on this machine; no torch.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
    if device == "cuda":
        check_device(device)


def place(array: npt.NDArray[Any], device: BuildDevice) -> Any:
    """The array itself for "cpu", a copy on torch's current CUDA device for "cuda".

    Raises
    ------
    MemoryError
        It does not fit there.
    """
    if device == "cpu":
        return array
    torch = import_torch()
    try:
        return torch.tensor(array, device="cuda")
    except torch.cuda.OutOfMemoryError as error:
        raise MemoryError(
            f"{array.nbytes:,} bytes do not fit on the GPU: build with device='cpu', or with a "
            "smaller `memory_budget`"
        ) from error


def encoder_of(codec: Codec, device: BuildDevice) -> Callable[[npt.NDArray[Any]], Columns]:
    """`codec.encode`, computed on `device`; its centroids are copied there once."""
    if device == "cpu":
        return codec.encode
    known: Any = codec
    there: Codec = dataclasses.replace(known, centroids=place(codec.centroids, device))

    def encode(embeddings: npt.NDArray[Any]) -> Columns:
        columns = there.encode(place(embeddings, device))
        return {name: as_array(column) for name, column in columns.items()}

    return encode
