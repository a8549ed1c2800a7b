"""Indexes of other libraries: Stanford ColBERT, fast-plaid, next-plaid, WARP."""

from __future__ import annotations

from pathlib import Path

from colbert_fast.errors import IndexFormatError
from colbert_fast.storage.interop.foreign import ForeignChunk, ForeignIndex, ForeignLayout
from colbert_fast.storage.interop.plaid import open_plaid
from colbert_fast.storage.interop.stanford import open_stanford
from colbert_fast.storage.interop.stanford_writer import StanfordWriter
from colbert_fast.storage.interop.warp import open_warp

__all__ = ["ForeignChunk", "ForeignIndex", "ForeignLayout", "StanfordWriter", "open_foreign"]


def open_foreign(path: Path) -> ForeignIndex:
    """Open the index of another library; its files tell which.

    Raises
    ------
    IndexFormatError
        It is none that is known here, or a file is missing, damaged or disagrees with another.
    """
    if (path / "centroids.pt").is_file():  # also where WARP's files were added to such an index
        return open_stanford(path)
    if any((path / f"sizes.compacted.{suffix}").is_file() for suffix in ("npy", "pt")):
        return open_warp(path)
    if (path / "bucket_weights.npy").is_file():
        return open_plaid(path)
    if not path.is_dir():
        raise IndexFormatError(f"{path}: no such folder")
    raise IndexFormatError(
        f"{path}: not an index of Stanford ColBERT (centroids.pt), WARP (sizes.compacted.*), "
        "fast-plaid or next-plaid (bucket_weights.npy)"
    )
