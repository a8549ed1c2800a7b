"""CUDA's kernels: where a call goes, and the stages that are on a GPU only.

Tensors on a CUDA device run the kernels of `_cuda` on torch's current stream of that device, and
the results lie there too. Nothing waits for the device, so nothing can look at values: what the
CPU's kernels refuse, such as a code that is too large or lengths that do not sum to the number of
tokens, is clamped or left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from colbert_fast import _core
from colbert_fast.errors import BackendUnavailable, MissingDependencyError
from colbert_fast.kernels import backend

__all__ = [
    "CentroidBytes",
    "byte_scores",
    "check_device",
    "documents_of",
    "import_torch",
    "is_cuda",
    "narrow_centroids",
    "out_of_memory",
    "quantise_centroids",
    "residual_maxsim",
    "run",
    "sort_by_code",
]

Tensor = Any


class CentroidBytes(NamedTuple):
    """Centroids as bytes: ``centroid ~ scale * (row - 64)``."""

    rows: Tensor  # uint8 (K, dim)
    scale: Tensor  # float32 (K,)
    longest: Tensor  # float32 (1,): the greatest length of a centroid


def is_cuda(array: Any) -> bool:
    """Whether an array lies on a CUDA device. (The device of a numpy array is a string.)"""
    return getattr(getattr(array, "device", None), "type", "cpu") == "cuda"


def import_torch() -> Any:
    """torch, for what takes numpy arrays and works on a GPU.

    Raises
    ------
    MissingDependencyError
        It is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            'a GPU needs the package torch: pip install "colbert-fast[encode]"'
        ) from error
    return torch


@contextmanager
def out_of_memory(says: Callable[[], str]) -> Iterator[None]:
    """Raise MemoryError with what `says` returns where torch finds no room on a GPU."""
    try:
        yield
    except import_torch().cuda.OutOfMemoryError as error:
        raise MemoryError(says()) from error


def check_device(device: str) -> Any:
    """The torch device that `device` names, if the kernels of `_cuda` can run on it.

    Raises
    ------
    ValueError
        It is no CUDA device.
    BackendUnavailable
        This build has no CUDA kernels, or this machine no such GPU.
    MissingDependencyError
        torch is not installed.
    """
    kind, _, number = str(device).partition(":")
    if kind != "cuda" or not (number.isdecimal() or str(device) == "cuda"):
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    count, torch = backend.cuda().device_count(), import_torch()
    if not torch.cuda.is_available():
        raise BackendUnavailable(f"device={device!r}: this torch sees no CUDA device")
    if number and int(number) >= count:
        raise BackendUnavailable(f"device={device!r}: this machine has {count} CUDA devices")
    index = int(number) if number else torch.cuda.current_device()
    backend.cuda(index)
    return torch.device("cuda", index)


def run(kernel: str, *arguments: Any) -> None:
    """Call a kernel of `_core`, or of `_cuda` if the first argument lies on a CUDA device.

    Raises
    ------
    BackendUnavailable
        That device is asked for, and this build or machine has no CUDA.
    """
    first = arguments[0]
    if not is_cuda(first):
        getattr(_core, kernel)(*arguments)
        return
    module, torch = backend.cuda(first.device.index), sys.modules["torch"]
    with torch.cuda.device(first.device):
        getattr(module, kernel)(*arguments, torch.cuda.current_stream().cuda_stream)


def documents_of(like: Any, doclens: Any) -> tuple[Any, ...]:
    """The arguments that say where documents are, for kernels that run where `like` lies."""
    if not is_cuda(like):
        return (doclens,)
    if not is_cuda(doclens):
        raise TypeError(f"`doclens` must be on {like.device}, got an array on the CPU")
    first = doclens.new_empty(doclens.shape, dtype=sys.modules["torch"].int64)
    run("starts", doclens, first)
    return first, doclens


def narrow_centroids(centroids: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What `assign` needs of centroids float32 (K, dim) for the tensor cores; of more dimensions
    than these take nothing.

    Returns
    -------
    rows : float16 (K, dim)
    extremes : float32 (2,)
        The greatest length of a centroid, and the greatest distance of one from its row; infinite
        if float16 cannot hold all.
    """
    if not is_cuda(centroids) or centroids.shape[1] > backend.cuda().max_mma_dim:
        return None, None  # `assign` says what is wrong with arrays on the CPU
    torch = sys.modules["torch"]
    rows, extremes = torch.empty_like(centroids, dtype=torch.float16), centroids.new_zeros((2,))
    run("narrow_centroids", centroids, rows, extremes)
    return rows, extremes


def sort_by_code(codes: Tensor, num_centroids: int) -> tuple[Tensor, Tensor]:
    """The points of each centroid, in ascending order: ``order[first[c]:first[c + 1]]``.

    Returns
    -------
    order : int64 (n,)
    first : int64 (num_centroids + 1,)
    """
    torch = sys.modules["torch"]
    ascending, order = torch.sort(codes, stable=True)
    ids = torch.arange(num_centroids + 1, dtype=codes.dtype, device=codes.device)
    return order, torch.searchsorted(ascending, ids)


def quantise_centroids(centroids: Tensor) -> CentroidBytes:
    """Centroids float32 (K, dim) as bytes, once for many queries."""
    torch, (k, dim) = sys.modules["torch"], centroids.shape
    found = CentroidBytes(
        centroids.new_empty((k, dim), dtype=torch.uint8),
        centroids.new_empty((k,)),
        centroids.new_zeros((1,)),
    )
    run("quantise_centroids", centroids, *found)
    return found


def _packed(query: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Memory for a query as int8: words, where products start, lengths, units."""
    torch, (nq, dim) = sys.modules["torch"], query.shape
    lanes = -(-nq // 32) * 32
    return (
        query.new_empty((backend.cuda().query_words(nq, dim),), dtype=torch.int32),
        query.new_empty((lanes,), dtype=torch.int32),
        query.new_empty((lanes,)),
        query.new_empty((lanes,)),
    )


def byte_scores(query: Tensor, centroids: CentroidBytes) -> tuple[Tensor, Tensor]:
    """Scores of all centroids as bytes (`reference.byte_scores`).

    Parameters
    ----------
    query : float32 (nq, dim)
    centroids : CentroidBytes

    Returns
    -------
    table : uint8 (K, nq up to a multiple of 32)
    step : float32 (nq up to a multiple of 32,)
        Byte b stands for ``step * (b - 127)``; 0 past the query's last token.
    """
    torch, lanes = sys.modules["torch"], -(-len(query) // 32) * 32
    table = query.new_empty((len(centroids.rows), lanes), dtype=torch.uint8)
    step = query.new_empty((lanes,))
    run("byte_scores", query, *centroids, _packed(query), table, step)
    return table, step


def residual_maxsim(
    query: Tensor,
    codes: Tensor,
    residuals: Tensor,
    doclens: Tensor,
    weights: Any,
    scales: Tensor | None,
    inverse_norms: Tensor | None,
    table: Tensor,
    step: Tensor,
) -> Tensor:
    """`ops.residual_maxsim` with int8 precision from the table of `byte_scores`."""
    scores = query.new_empty((len(doclens),))
    where = documents_of(query, doclens)
    columns = (weights, scales, inverse_norms, table, step, _packed(query), scores)
    run("residual_maxsim", query, codes, residuals, *where, *columns)
    return scores
