"""Read the index of Stanford ColBERT (colbert-ai), and of RAGatouille, which writes the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from colbert_fast.errors import IndexFormatError
from colbert_fast.storage.documents import DocumentId
from colbert_fast.storage.interop.foreign import (
    ForeignChunk,
    ForeignIndex,
    check_chunk,
    check_codec,
    count_of,
    read_doclens,
    read_object,
)
from colbert_fast.storage.interop.torch_files import read_tensors

__all__ = ["IDS", "open_stanford"]

logger = logging.getLogger(__name__)

IDS = "pid_docid_map.json"  # RAGatouille's and our exports'; colbert-ai does not look at it


def open_stanford(path: Path) -> ForeignIndex:
    """Open an index folder of Stanford ColBERT.

    Raises
    ------
    IndexFormatError
        A file is missing, damaged or disagrees with another; named.
    """
    place = path / "metadata.json"
    if not place.is_file():
        place = path / "plan.json"  # of an index whose build stopped short of the last step
    metadata = read_object(place)
    config = metadata.get("config")
    if not isinstance(config, dict):
        raise IndexFormatError(f'{place}: "config" must be an object, got {config!r}')
    num_chunks = count_of(metadata, "num_chunks", place, least=1)
    dim, bits = count_of(config, "dim", place, least=1), count_of(config, "nbits", place, least=1)
    buckets = path / "buckets.pt"
    centroids = _tensors(path / "centroids.pt", 1)[0]
    cutoffs, weights = _tensors(buckets, 2)
    nbits = check_codec((path / "centroids.pt", centroids), (buckets, cutoffs), (buckets, weights))
    if (centroids.shape[1], nbits) != (dim, bits):
        raise IndexFormatError(
            f"{place}: dim {dim} and nbits {bits}, but the centroids have {centroids.shape[1]} "
            f"dimensions and there are {len(weights)} bucket weights"
        )
    doclens = [read_doclens(path / f"doclens.{number}.json") for number in range(num_chunks)]
    checkpoint = config.get("checkpoint")

    def read() -> Iterator[ForeignChunk]:
        first = 0
        for number, lengths in enumerate(doclens):
            codes = path / f"{number}.codes.pt"
            residuals = path / f"{number}.residuals.pt"
            pids = np.arange(first, first + len(lengths))
            first += len(lengths)
            chunk = ForeignChunk(_tensors(codes, 1)[0], _tensors(residuals, 1)[0], lengths, pids)
            yield check_chunk(
                chunk, len(centroids), dim * nbits // 8, codes=codes, residuals=residuals
            )

    return ForeignIndex(
        layout="stanford",
        path=path,
        centroids=centroids,
        cutoffs=cutoffs.astype(np.float32),
        weights=weights.astype(np.float32),
        nbits=nbits,
        num_documents=sum(map(len, doclens)),
        model=checkpoint if isinstance(checkpoint, str) and checkpoint != "none" else None,
        read=read,
        ids=_ids(path / IDS, sum(map(len, doclens))),
    )


def _ids(place: Path, count: int) -> list[DocumentId] | None:
    """The names of the passages; None if there are none, or several passages share one."""
    if not place.is_file():
        return None
    names = read_object(place)
    ids: list[Any] = [names.get(str(number)) for number in range(count)]
    if not all(type(each) in (str, int) for each in ids):
        raise IndexFormatError(f"{place}: does not give each of {count} passages a name")
    if len(set(ids)) < count:
        logger.warning("%s: passages share names; they keep their numbers as ids", place)
        return None
    return ids


def _tensors(path: Path, count: int) -> list[npt.NDArray[Any]]:
    tensors = read_tensors(path)
    if len(tensors) != count:
        raise IndexFormatError(f"{path}: {len(tensors)} tensors, wanted {count}")
    return tensors
