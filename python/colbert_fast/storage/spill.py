"""Token vectors on disk, from their encoding until the centroids to compress them are known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from colbert_fast.storage.files import named_error

__all__ = ["SPILL", "Spill"]

SPILL = "spill.tmp"

Float16 = npt.NDArray[np.float16]
Int32 = npt.NDArray[np.int32]


class Spill:
    """A temporary file of float16 vectors (tokens, dim), appended in chunks of whole documents.

    Read with plain file reads: mapped pages would count as the process's memory.
    """

    def __init__(self, path: Path) -> None:
        self.num_tokens = 0
        self.num_documents = 0
        self.dim = 0
        self._chunks: list[Int32] = []
        self._path = path
        self._file: IO[bytes] = path.open("wb+")

    def append(self, embeddings: Float16, doclens: Int32) -> None:
        """Add one chunk of whole documents."""
        try:
            self._file.write(np.ascontiguousarray(embeddings).data)
        except OSError as error:
            raise named_error(error, self._path) from error
        self.dim = embeddings.shape[1]
        self.num_tokens += len(embeddings)
        self.num_documents += len(doclens)
        self._chunks.append(doclens)

    def chunks(self) -> Iterator[tuple[Float16, Int32]]:
        """The chunks as they were appended."""
        start = 0
        for doclens in self._chunks:
            rows = np.empty((int(doclens.sum(dtype=np.int64)), self.dim), np.float16)
            self._read(start, rows)
            yield rows, doclens
            start += len(rows)

    def sample(self, rng: np.random.Generator, num_documents: int, max_tokens: int) -> Float16:
        """The vectors of documents drawn at random, in random order, cut off at `max_tokens`."""
        doclens = np.concatenate(self._chunks).astype(np.int64)
        starts = np.cumsum(doclens) - doclens
        chosen = rng.permutation(len(doclens))[:num_documents]
        ends = np.minimum(np.cumsum(doclens[chosen]), max_tokens)
        rows = np.empty((int(ends[-1]), self.dim), np.float16)
        begin = 0
        for document, end in zip(chosen.tolist(), ends.tolist(), strict=True):
            if begin == end:
                break
            self._read(int(starts[document]), rows[begin:end])
            begin = end
        return rows

    def _read(self, start: int, rows: Float16) -> None:
        self._file.seek(start * self.dim * 2)
        wanted = rows.nbytes
        if self._file.readinto(rows.data.cast("B")) != wanted:  # type: ignore[attr-defined]
            raise OSError(None, "the file of spilled vectors has been cut short", str(self._path))

    def delete(self) -> None:
        """Close and remove the file."""
        try:
            self._file.close()
        finally:
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *_: object) -> None:
        self.delete()
