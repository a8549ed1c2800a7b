"""Read the indexes of fast-plaid and next-plaid, which share their files.

Documents lie in chunks, ``N.codes.npy`` and ``N.residuals.npy``. From 1.7 on fast-plaid moves them
into ``merged_codes.npy`` and ``merged_residuals.npy``, back to back: what is left beside those is
newer than what they hold of the same chunk, and their manifest says how many rows of each they do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from colbert_fast.errors import IndexFormatError
from colbert_fast.storage.interop.foreign import (
    ForeignChunk,
    ForeignIndex,
    check_chunk,
    check_codec,
    count_of,
    open_array,
    read_doclens,
    read_object,
)

__all__ = ["open_plaid"]


def open_plaid(path: Path) -> ForeignIndex:
    """Open an index folder of fast-plaid or next-plaid.

    Raises
    ------
    IndexFormatError
        A file is missing, damaged or disagrees with another; named.
    """
    place = path / "metadata.json"
    metadata = read_object(place)
    num_chunks = count_of(metadata, "num_chunks", place, least=1)
    files = [path / f"{name}.npy" for name in ("centroids", "bucket_cutoffs", "bucket_weights")]
    centroids, cutoffs, weights = [
        open_array(file, "f2 f4", shape)
        for file, shape in zip(files, ((None, None), (None,), (None,)), strict=True)
    ]
    nbits = check_codec(
        (files[0], centroids),
        (files[1], cutoffs),
        (files[2], weights),
        count_of(metadata, "nbits", place, least=1),
    )
    doclens = [read_doclens(path / f"doclens.{number}.json") for number in range(num_chunks)]
    width = centroids.shape[1] * nbits // 8
    sizes = [int(lengths.sum()) for lengths in doclens]

    def read() -> Iterator[ForeignChunk]:
        codes = _Column(path, "codes", "i8", (), sizes)
        residuals = _Column(path, "residuals", "u1", (width,), sizes)
        first = 0
        for number, lengths in enumerate(doclens):
            pids = np.arange(first, first + len(lengths))
            first += len(lengths)
            (code_file, code_rows), (file, rows) = codes.chunk(number), residuals.chunk(number)
            yield check_chunk(
                ForeignChunk(code_rows, rows, lengths, pids),
                len(centroids),
                width,
                codes=code_file,
                residuals=file,
            )

    return ForeignIndex(
        layout="next-plaid" if metadata.get("next_plaid_compatible") else "fast-plaid",
        path=path,
        centroids=centroids,
        cutoffs=cutoffs.astype(np.float32),
        weights=weights.astype(np.float32),
        nbits=nbits,
        num_documents=sum(map(len, doclens)),
        model=None,
        read=read,
    )


class _Column:
    """Codes or residuals by chunk, wherever they lie."""

    def __init__(
        self, path: Path, name: str, kinds: str, row: tuple[int, ...], sizes: Sequence[int]
    ) -> None:
        self._path, self._name, self._kinds, self._row = path, name, kinds, row
        self._sizes = sizes
        self._merged = path / f"merged_{name}.npy"
        self._starts = np.cumsum([0, *self._merged_rows()])

    def _merged_rows(self) -> list[int]:
        """How many rows of each chunk the merged file holds."""
        place = self._merged.with_suffix(".manifest.json")
        if not place.is_file():
            return list(self._sizes)
        manifest, rows = read_object(place), []
        for number in range(len(self._sizes)):
            entry = manifest.get(f"{number}.{self._name}.npy", {"rows": 0})
            if not isinstance(entry, dict):
                raise IndexFormatError(f"{place}: expected an object, got {entry!r}")
            rows.append(count_of(entry, "rows", place))
        return rows

    def chunk(self, number: int) -> tuple[Path, npt.NDArray[Any]]:
        """The rows of a chunk, and the file that they are in."""
        own = self._path / f"{number}.{self._name}.npy"
        size = self._sizes[number]
        if own.is_file() or not self._merged.is_file():
            return own, open_array(own, self._kinds, (size, *self._row))
        whole = open_array(self._merged, self._kinds, (None, *self._row))
        start, end = int(self._starts[number]), int(self._starts[number + 1])
        if end - start != size or end > len(whole):
            raise IndexFormatError(
                f"{self._merged}: rows {start} to {end} of {len(whole)} for the {size} tokens of "
                f"doclens.{number}.json"
            )
        return self._merged, whole[start:end]
