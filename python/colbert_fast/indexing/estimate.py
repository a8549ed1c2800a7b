"""What a build will take, told once its first documents are in."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tqdm import tqdm

from colbert_fast import _core
from colbert_fast.compress.codec import float16_columns, residual_columns
from colbert_fast.indexing.options import BASE_BYTES, BuildOptions

if TYPE_CHECKING:
    from colbert_fast.indexing.ingest import Chunk

__all__ = ["Estimate", "announced"]

logger = logging.getLogger(__name__)

_TOLD_FROM = 60.0  # seconds
# Of one thread: assignment and coding of a token with 2^15 centroids; other numbers of centroids
# change it little, as they are searched in two levels.
_SECONDS_PER_TOKEN = 2e-5
_LIST_BYTES = 1.0  # a token, of bit-packed gaps


class Estimate(NamedTuple):
    """What a whole build takes; texts and metadata, and the model, come on top."""

    num_documents: int
    num_tokens: int
    index_bytes: int
    temporary_bytes: int
    memory_bytes: int
    seconds: float

    @classmethod
    def of(
        cls,
        options: BuildOptions,
        *,
        dim: int,
        num_documents: int,
        num_tokens: int,
        sampled: int,
        spilled: int,
        seconds: float,
    ) -> Estimate:
        """For documents that `seconds` will have been spent on reading and encoding."""
        num_centroids = options.num_centroids or 1 << int(math.log2(16 * math.sqrt(num_tokens)))
        if options.codec == "float16":
            columns = float16_columns(num_centroids, dim)
        else:
            columns = residual_columns(options.codec, num_centroids, dim, options.nbits)
        row = sum(each.row_bytes for each in columns.values())
        vector = np.dtype(np.float16).itemsize * dim
        centroids = np.dtype(np.float32).itemsize * dim * num_centroids
        return cls(
            num_documents,
            num_tokens,
            int(num_tokens * (row + _LIST_BYTES)) + centroids // 4,
            vector * min(spilled, num_tokens),
            BASE_BYTES + 3 * centroids + 2 * vector * min(sampled, num_tokens),
            seconds + num_tokens * _SECONDS_PER_TOKEN / _core.get_num_threads(),
        )

    def __str__(self) -> str:
        return (
            f"about {self.num_documents:,} documents, {self.num_tokens / 1e6:.1f} M tokens: "
            f"{_size(self.index_bytes)} of index without texts, "
            f"{_size(self.temporary_bytes)} of temporary files, "
            f"{_size(self.memory_bytes)} of memory, {_duration(self.seconds)}"
        )


def announced(
    chunks: Iterator[Chunk],
    expected: int | None,
    options: BuildOptions,
    folder: Path,
    *,
    sampled: int,
    spilled: int,
) -> Iterator[Chunk]:
    """The chunks; after the first one, if there are to be more, the estimate is told.

    `sampled` and `spilled` are the tokens that a build samples and spills at most.
    """
    started = time.perf_counter()
    first = next(chunks, None)
    if first is None:
        return
    count, tokens = len(first.doclens), len(first.embeddings)
    if expected is not None and expected > count:
        share = expected / count
        _tell(
            Estimate.of(
                options,
                dim=first.embeddings.shape[1],
                num_documents=expected,
                num_tokens=int(tokens * share),
                sampled=sampled,
                spilled=spilled,
                seconds=(time.perf_counter() - started) * share,
            ),
            folder,
            options.progress,
        )
    yield first
    yield from chunks


def _tell(estimate: Estimate, folder: Path, progress: bool) -> None:
    logger.info("%s", estimate)
    if progress and estimate.seconds > _TOLD_FROM:
        tqdm.write(str(estimate))
    needed = estimate.index_bytes + estimate.temporary_bytes
    free = shutil.disk_usage(folder).free
    if needed > free:
        logger.warning(
            "%s has %s free, the build will need about %s and room for the texts",
            folder,
            _size(free),
            _size(needed),
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    if seconds < 3600:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h"
