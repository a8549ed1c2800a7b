"""Compression on a CUDA device: vectors go there as they are needed, and columns come back."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, cast

import numpy.typing as npt

from colbert_fast.arrays import as_array
from colbert_fast.compress.codec import Codec, Columns
from colbert_fast.kernels.cuda import check_device, import_torch, out_of_memory

__all__ = ["BuildDevice", "check_build_device", "encode_each", "place", "room_for"]

BuildDevice: TypeAlias = Literal["cpu", "cuda"]


class _HasEmbeddings(Protocol):
    @property
    def embeddings(self) -> npt.NDArray[Any]: ...


_Chunk = TypeVar("_Chunk", bound=_HasEmbeddings)


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


def room_for(
    array: npt.NDArray[Any], device: BuildDevice, advice: str
) -> AbstractContextManager[None]:
    """Raise MemoryError where a GPU has no room for an array and what is made of it.

    `advice` says what else to do than to build on the CPU.
    """
    if device == "cpu":
        return nullcontext()
    return out_of_memory(
        lambda: (
            f"{array.nbytes:,} bytes and what is computed of them do not fit on the GPU: build "
            f"with device='cpu', or {advice}"
        )
    )


def place(array: npt.NDArray[Any], device: BuildDevice) -> Any:
    """The array itself for "cpu", a copy on torch's current CUDA device for "cuda"."""
    return array if device == "cpu" else import_torch().tensor(array, device="cuda")


def _send(array: npt.NDArray[Any], stream: Any) -> Any:
    """A copy on the GPU, on its way there by `stream`, for which the current stream waits.

    The host copies the array into pinned memory and does not wait for the rest.
    """
    torch = import_torch()
    current = torch.cuda.current_stream()
    with torch.cuda.stream(stream):
        sent = torch.from_numpy(array).pin_memory().to("cuda", non_blocking=True)
    current.wait_stream(stream)
    sent.record_stream(current)
    return sent


def encode_each(
    codec: Codec, chunks: Iterable[_Chunk], device: BuildDevice
) -> Iterator[tuple[_Chunk, Columns]]:
    """Every chunk with its columns: `codec.encode` of its embeddings, computed on `device`.

    A GPU is a chunk ahead: it copies and computes one while the caller has the one before.

    Raises
    ------
    MemoryError
        A chunk or the centroids do not fit there.
    """
    if device == "cpu":
        yield from ((chunk, codec.encode(chunk.embeddings)) for chunk in chunks)
        return
    torch, known = import_torch(), cast("Any", codec)
    with room_for(codec.centroids, device, "with fewer centroids"):
        there: Any = dataclasses.replace(known, centroids=place(codec.centroids, device))
    copies = torch.cuda.Stream()

    def start(chunk: _Chunk) -> tuple[_Chunk, dict[str, Any], Any]:
        with room_for(chunk.embeddings, device, "free memory of the GPU"):
            columns = there.encode(_send(chunk.embeddings, copies))
            # Into pinned memory, and before the next chunk's work: the stream keeps the order.
            found = {name: each.to("cpu", non_blocking=True) for name, each in columns.items()}
        done = torch.cuda.Event()
        done.record()
        return chunk, found, done

    def finish(chunk: _Chunk, columns: dict[str, Any], done: Any) -> tuple[_Chunk, Columns]:
        done.synchronize()
        return chunk, {name: as_array(column) for name, column in columns.items()}

    before = None
    for started in itertools.chain(map(start, chunks), [None]):
        if before is not None:
            yield finish(*before)
        before = started
