"""Read the indexes of WARP: xtr-warp's .pt files and xtr-warp-rs's .npy files.

Their tokens lie by centroid, with the number of the document of each. Here they are put into
documents again, ordered by centroid within each: where a token stood in its document is not kept,
and MaxSim does not ask.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from colbert_fast.errors import IndexFormatError
from colbert_fast.storage.interop.foreign import (
    ForeignChunk,
    ForeignIndex,
    check_array,
    check_chunk,
    check_codec,
    count_of,
    open_array,
    read_object,
)
from colbert_fast.storage.interop.torch_files import read_tensors

__all__ = ["open_warp"]

_CHUNK_TOKENS = 1 << 20
_MAX_PID = (1 << 31) - 2


def open_warp(path: Path) -> ForeignIndex:
    """Open an index folder of xtr-warp or xtr-warp-rs.

    Sorting takes 28 bytes of memory per token while the chunks are read.

    Raises
    ------
    IndexFormatError
        A file is missing, damaged or disagrees with another; named.
    """
    files = [path / f"{name}.npy" for name in ("centroids", "bucket_cutoffs", "bucket_weights")]
    centroids, cutoffs, weights = [
        open_array(file, "f2 f4", shape)
        for file, shape in zip(files, ((None, None), (None,), (None,)), strict=True)
    ]
    nbits = check_codec((files[0], centroids), (files[1], cutoffs), (files[2], weights))
    suffix = "npy" if (path / "sizes.compacted.npy").is_file() else "pt"
    code_file = path / f"codes.compacted.{suffix}"
    pids = _open(code_file, "i4 i8", (None,))
    if len(pids) and not 0 <= pids.min() <= pids.max() <= _MAX_PID:
        raise IndexFormatError(f"{code_file}: document numbers outside 0..{_MAX_PID}")
    size_file = path / f"sizes.compacted.{suffix}"
    sizes = _open(size_file, "i4 i8", (len(centroids),))
    if (sizes < 0).any() or (sizes > len(pids)).any() or int(sizes.sum()) != len(pids):
        raise IndexFormatError(f"{size_file}: the sizes do not add up to {len(pids)} tokens")
    residual_file = path / f"residuals.compacted.{suffix}"
    width = centroids.shape[1] * nbits // 8
    residuals = _open(residual_file, "u1", (len(pids), width))
    deleted = _deleted(path)

    def read() -> Iterator[ForeignChunk]:
        for chunk in _by_document(pids, sizes, residuals, deleted):
            yield check_chunk(
                chunk, len(centroids), width, codes=size_file, residuals=residual_file
            )

    return ForeignIndex(
        layout="warp",
        path=path,
        centroids=centroids,
        cutoffs=cutoffs.astype(np.float32),
        weights=weights.astype(np.float32),
        nbits=nbits,
        num_documents=_num_documents(path, int(pids.max(initial=-1)) + 1),
        model=None,
        read=read,
    )


def _num_documents(path: Path, least: int) -> int:
    """One above the last number that was given out, which may be of a deleted document."""
    place = path / "metadata.json"
    metadata = read_object(place) if place.is_file() else {}
    if "next_passage_id" not in metadata:
        return least
    return count_of(metadata, "next_passage_id", place, least=least)


def _open(path: Path, kinds: str, shape: tuple[int | None, ...]) -> npt.NDArray[Any]:
    if path.suffix == ".npy":
        return open_array(path, kinds, shape)
    tensors = read_tensors(path)
    check_array(path, tensors[0], kinds, shape)
    return tensors[0]


def _deleted(path: Path) -> npt.NDArray[Any]:
    place = path / "deleted_pids.npy"
    return open_array(place, "i8", (None,)) if place.is_file() else np.empty(0, np.int64)


def _by_document(
    pids: npt.NDArray[Any],
    sizes: npt.NDArray[Any],
    residuals: npt.NDArray[np.uint8],
    deleted: npt.NDArray[Any],
) -> Iterator[ForeignChunk]:
    codes = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    order = np.argsort(pids, kind="stable")
    found, lengths = np.unique(pids, return_counts=True)
    ends = np.cumsum(lengths)
    kept = ~np.isin(found, deleted)
    first = 0
    while first < len(found):
        start = int(ends[first] - lengths[first])
        last = max(first + 1, int(np.searchsorted(ends, start + _CHUNK_TOKENS, "right")))
        documents = np.arange(first, last)[kept[first:last]]
        rows = order[start : int(ends[last - 1])]
        rows = rows[np.repeat(kept[first:last], lengths[first:last])]
        yield ForeignChunk(
            codes[rows],
            residuals[rows],
            lengths[documents].astype(np.int64),
            found[documents].astype(np.int64),
        )
        first = last
