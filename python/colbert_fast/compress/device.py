"""Compression on a CUDA device: vectors go there as they are needed, and columns come back."""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, cast

import numpy.typing as npt

from colbert_fast.arrays import as_array
from colbert_fast.compress.codec import Codec, Columns
from colbert_fast.kernels.cuda import check_device, import_torch

__all__ = ["BuildDevice", "check_build_device", "encode_each", "place"]

BuildDevice: TypeAlias = Literal["cpu", "cuda"]


class _HasEmbeddings(Protocol):
    @property
    def embeddings(self) -> npt.NDArray[Any]: ...


Vectors = TypeVar("Vectors", bound=_HasEmbeddings)


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
    with _room_for(array):
        return torch.tensor(array, device="cuda")


def encode_each(
    codec: Codec, chunks: Iterable[Vectors], device: BuildDevice
) -> Iterator[tuple[Vectors, Columns]]:
    """Every chunk with its columns: `codec.encode` of its embeddings, computed on `device`.

    On a GPU two chunks are under way, each on a stream of its own: one is copied there while the
    other is computed, and the caller has the columns of the one before meanwhile.

    Raises
    ------
    MemoryError
        A chunk or the centroids do not fit there.
    """
    if device == "cpu":
        yield from ((chunk, codec.encode(chunk.embeddings)) for chunk in chunks)
        return
    torch, known = import_torch(), cast("Any", codec)
    there: Any = dataclasses.replace(known, centroids=place(codec.centroids, device))
    where = there.centroids.device
    gpu = torch.get_device_module(where)
    streams = [gpu.Stream() for _ in range(2)]
    for stream in streams:
        stream.wait_stream(gpu.current_stream())  # which brings the centroids

    def start(chunk: Vectors, stream: Any) -> tuple[Vectors, dict[str, Any], Any]:
        with gpu.stream(stream), _room_for(chunk.embeddings):
            # Only pinned memory is copied while the host goes on.
            pinned = torch.tensor(chunk.embeddings, pin_memory=where.type == "cuda")
            columns = there.encode(pinned.to(where, non_blocking=True))
            found = {name: each.to("cpu", non_blocking=True) for name, each in columns.items()}
            done = gpu.Event()
            done.record(stream)
        return chunk, found, done

    def finish(chunk: Vectors, columns: dict[str, Any], done: Any) -> tuple[Vectors, Columns]:
        done.synchronize()
        return chunk, {name: as_array(column) for name, column in columns.items()}

    under_way: deque[tuple[Vectors, dict[str, Any], Any]] = deque()
    for chunk, stream in zip(chunks, itertools.cycle(streams), strict=False):
        under_way.append(start(chunk, stream))
        if len(under_way) == len(streams):
            yield finish(*under_way.popleft())
    yield from (finish(*each) for each in under_way)


@contextmanager
def _room_for(array: npt.NDArray[Any]) -> Iterator[None]:
    """Say what to do where the GPU has no room for an array, or for what is made of it."""
    try:
        yield
    except import_torch().cuda.OutOfMemoryError as error:
        raise MemoryError(
            f"{array.nbytes:,} bytes do not fit on the GPU: build with device='cpu', or with a "
            "smaller `memory_budget`"
        ) from error
