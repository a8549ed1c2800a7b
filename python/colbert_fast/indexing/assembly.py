"""Segments written: encoded from chunks of vectors, or copied from other segments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from colbert_fast.compress.codec import Codec
from colbert_fast.compress.device import BuildDevice, encode_each
from colbert_fast.indexing.ingest import Chunk
from colbert_fast.kernels import ops
from colbert_fast.search.snapshot import Snapshot
from colbert_fast.storage.codes import code_bits
from colbert_fast.storage.documents import DocumentStore, DocumentWriter
from colbert_fast.storage.manifest import STORE, SegmentRecord
from colbert_fast.storage.segments import Segment, SegmentWriter, write_lists

__all__ = [
    "Source",
    "copy_segments",
    "encode_segment",
    "finish_segment",
    "invert",
    "residual_norms",
    "sources_of",
]

_MEASURED = 8  # every so-manieth token is enough for the mean of all
_COPIED = 1 << 17  # tokens copied at once
_LISTS_AT_ONCE = 1 << 26  # bytes; the lists take about one for each token


def encode_segment(
    folder: Path,
    codec: Codec,
    chunks: Iterable[Chunk],
    advance: Callable[[int], object],
    *,
    device: BuildDevice = "cpu",
) -> SegmentRecord:
    """Compress `chunks` into the segment `folder`, which exists, and make its inverted lists.

    `advance` is told of each chunk's number of tokens when it is done.
    """
    total, measured = 0.0, 0
    with SegmentWriter(folder, codec.columns()) as segment:
        for chunk, columns in encode_each(codec, chunks, device):
            segment.append(columns, chunk.doclens)
            norms = residual_norms(
                chunk.embeddings[::_MEASURED], columns["codes"][::_MEASURED], codec
            )
            total, measured = total + float(norms.sum(dtype=np.float64)), measured + len(norms)
            advance(len(chunk.embeddings))
        segment.close()
    return finish_segment(segment, codec, total / measured)


def residual_norms(
    embeddings: npt.NDArray[Any], codes: npt.NDArray[Any], codec: Codec
) -> npt.NDArray[np.float32]:
    """How far vectors lie from their centroids, float32 (n,)."""
    residuals = embeddings.astype(np.float32)
    residuals -= codec.centroids[codes]
    norms: npt.NDArray[np.float32] = np.sqrt(np.einsum("ij,ij->i", residuals, residuals))
    return norms


class Source(NamedTuple):
    """A segment to copy from, with its record and the documents that are wanted, bool (n_docs,)."""

    record: SegmentRecord
    segment: Segment
    store: DocumentStore
    wanted: npt.NDArray[np.bool_]

    def chunks(self) -> Iterator[tuple[Mapping[str, npt.NDArray[Any]], npt.NDArray[np.int32]]]:
        """Columns and doclens of the wanted documents, some hundred thousand tokens at a time."""
        ends = np.cumsum(self.segment.doclens, dtype=np.int64)
        first = 0
        while first < len(ends):
            start = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, start + _COPIED, side="right")))
            rows, wanted = slice(start, int(ends[last - 1])), self.wanted[first:last]
            doclens = self.segment.doclens[first:last]
            tokens = np.repeat(wanted, doclens)
            columns = {name: each[rows][tokens] for name, each in self.segment.columns.items()}
            yield columns, doclens[wanted]
            first = last


def sources_of(snapshot: Snapshot, deleted: Iterable[int] = ()) -> list[Source]:
    """The segments with the documents that are live, less those at the positions `deleted`."""
    gone = np.zeros(snapshot.manifest.num_rows, np.bool_)
    gone[list(deleted)] = True
    bases = snapshot.bases()
    return [
        Source(
            record,
            snapshot.segments[number],
            snapshot.library.stores[number],
            snapshot.live_of(number) & ~gone[bases[number] : bases[number + 1]],
        )
        for number, record in enumerate(snapshot.manifest.segments)
    ]


def copy_segments(folder: Path, codec: Codec, sources: Iterable[Source]) -> SegmentRecord:
    """Write the wanted documents of all sources, in order, as one segment in `folder`.

    The sources have been encoded with `codec`, or with fewer of its centroids.
    """
    columns, norms, tokens = codec.columns(), 0.0, 0
    with DocumentWriter(folder / STORE) as store, SegmentWriter(folder, columns) as segment:
        for source in sources:
            for rows, doclens in source.chunks():
                wide = {name: each.astype(columns[name].dtype) for name, each in rows.items()}
                segment.append(wide, doclens)
            store.add_rows(row for row in source.store.rows() if source.wanted[row[0]])
            norms += source.record.residual_norm * source.record.num_tokens
            tokens += source.record.num_tokens
        segment.close()
        store.close()
    return finish_segment(segment, codec, norms / tokens)


def finish_segment(segment: SegmentWriter, codec: Codec, residual_norm: float) -> SegmentRecord:
    """Make the inverted lists of a segment whose columns have been closed."""
    invert(segment.folder, len(codec.centroids))
    return SegmentRecord(
        segment.folder.name,
        num_documents=segment.num_documents,
        num_tokens=segment.num_tokens,
        num_centroids=len(codec.centroids),
        residual_norm=residual_norm,
    )


def invert(folder: Path, num_centroids: int) -> None:
    """Make the inverted lists of the segment in `folder` from its codes and doclens."""
    packed = np.load(folder / "codes.npy", mmap_mode="r")
    doclens = np.load(folder / "doclens.npy")
    bits = code_bits(num_centroids)
    lists = ops.stream_lists(packed, bits, doclens, num_centroids, max_bytes=_LISTS_AT_ONCE)
    write_lists(folder, *lists)
