"""Changes of an index: documents added, replaced and deleted; segments merged, vectors re-encoded.

Each is one transaction: a new generation, or nothing. New documents become a segment of their own;
small ones are merged with the next, so that their number grows as the logarithm of the index's
size, and a document is copied as many times at most.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from colbert_fast.compress.codec import Codec
from colbert_fast.compress.kmeans import fit_centroids
from colbert_fast.indexing.assembly import Source, copy_segments, residual_norms, sources_of
from colbert_fast.indexing.build import Fitted, encode_stream, fit, save_codec
from colbert_fast.indexing.ingest import (
    Chunk,
    TokenStream,
    check_documents,
    length_of,
    read_documents,
)
from colbert_fast.indexing.options import BuildOptions
from colbert_fast.kernels import ops
from colbert_fast.search.params import check_positive
from colbert_fast.search.queries import filtered
from colbert_fast.search.snapshot import Snapshot
from colbert_fast.storage.documents import Document, DocumentId, DocumentStore, DocumentWriter
from colbert_fast.storage.filters import Filter
from colbert_fast.storage.library import Library
from colbert_fast.storage.manifest import STORE, Manifest, SegmentRecord, new_lineage
from colbert_fast.storage.models import check_model
from colbert_fast.storage.segments import Segment, write_npy
from colbert_fast.storage.spill import Spill
from colbert_fast.storage.transactions import Transaction, update

if TYPE_CHECKING:
    from colbert_fast.model import ColBERT

__all__ = [
    "AddOptions",
    "add_documents",
    "compact",
    "delete_documents",
    "mark_deleted",
]

logger = logging.getLogger(__name__)

# New vectors whose mean distance from their centroids is so many times what it was when the codec
# was fitted get centroids of their own; those of them that lie yet farther out do.
_DRIFT = 1.1
_TOKENS_PER_CENTROID = 64
_SAMPLE_TOKENS = 1 << 18
_IDS_AT_ONCE = 256
_GLANCE_TOKENS = 1 << 11  # of them, enough to tell the mean distance
_KMEANS_ITERATIONS = 4


@dataclasses.dataclass(frozen=True)
class AddOptions:
    """The options of `Index.add` and `Index.upsert`, which tell what they are."""

    upsert: bool
    pool_factor: int
    timeout: float
    progress: bool

    def __post_init__(self) -> None:
        check_positive("pool_factor", self.pool_factor)


def add_documents(
    path: Path,
    documents: Iterable[Any],
    options: AddOptions,
    *,
    model: Callable[[], ColBERT],
    ids: Iterable[DocumentId] | None = None,
) -> int:
    """Add documents, or replace those whose ids are there; returns how many were given.

    `model` is called if there are texts to encode.
    """
    with update(path, timeout=options.timeout) as (transaction, base):
        check_documents(documents, ids, first_id=base.next_id)
        snapshot = Snapshot(path, base)
        replaced: list[int] = []
        items = read_documents(documents, ids, first_id=base.next_id)
        items = _new_or_replacing(items, snapshot.library, replaced if options.upsert else None)
        first = next(items, None)
        if first is None:
            return 0
        folder = transaction.new_folder("segment")
        with DocumentWriter(folder / STORE) as store:
            stream = TokenStream(
                itertools.chain([first], items),
                store,
                model=_checked(model(), snapshot) if first.embeddings is None else None,
                pool_factor=options.pool_factor,
                expected=length_of(documents, ids),
                progress=options.progress,
                dim=snapshot.manifest.dim,
            )
            (codec, _), segment = encode_stream(
                folder,
                iter(stream),
                lambda spill, _: _extended(snapshot, spill),
                progress=options.progress,
            )
            store.close()
        manifest = _with_codec(transaction, snapshot.manifest, codec)
        transaction.commit(
            dataclasses.replace(
                manifest,
                next_id=max(manifest.next_id, store.next_id),
                segments=_appended(transaction, codec, sources_of(snapshot, replaced), segment),
            )
        )
        return store.count


def _checked(model: ColBERT, snapshot: Snapshot) -> ColBERT:
    """The model, if it is the index's: that may have been built anew since it was opened."""
    check_model(snapshot.manifest, model)
    return model


def _new_or_replacing(
    documents: Iterator[Document], library: Library, replaced: list[int] | None
) -> Iterator[Document]:
    """The documents; positions of the same id go into `replaced`, or are an error without it.

    Ids are looked up many at once, some documents late: reading ahead instead would take a second
    document from a source that fills the same buffer again.
    """

    def look_up(ids: list[DocumentId]) -> None:
        found = library.find(ids)
        if found and replaced is None:
            raise ValueError(
                f"ids must be unique: {min(found, key=ids.index)!r} is in the index already; "
                "upsert() replaces documents"
            )
        if replaced is not None:
            replaced.extend(found.values())

    ids: list[DocumentId] = []
    for document in documents:
        ids.append(document.id)
        yield document
        if len(ids) == _IDS_AT_ONCE:
            look_up(ids)
            ids = []
    look_up(ids)


def _extended(snapshot: Snapshot, spill: Spill) -> Fitted:
    """The index's codec, with more centroids where the new vectors lie far from those it has."""
    codec, usual = snapshot.codec, snapshot.manifest.residual_norm
    rng = np.random.default_rng(snapshot.manifest.generation)
    sample = spill.sample(rng, spill.num_documents, _SAMPLE_TOKENS)
    norms = _distances(sample[:_GLANCE_TOKENS], codec)
    drift = float(norms.mean(dtype=np.float64)) / usual if usual else 1.0
    fitted = Fitted(codec, usual)
    if drift < _DRIFT:
        return fitted
    far = sample[_distances(sample, codec) > _DRIFT * usual]
    share = spill.num_tokens / max(snapshot.manifest.num_tokens, spill.num_tokens)
    wanted = min(int(len(codec.centroids) * share), len(far) // _TOKENS_PER_CENTROID)
    if wanted == 0:
        return fitted
    logger.warning(
        "new documents lie %.2f times as far from the centroids as those that the index was built "
        "of: %d centroids are added to %d; compact(retrain=True) fits all of them anew",
        drift,
        wanted,
        len(codec.centroids),
    )
    added = fit_centroids(far, wanted, iterations=_KMEANS_ITERATIONS, seed=0)
    return fitted._replace(codec=codec.extended(added))


def _distances(vectors: npt.NDArray[np.float16], codec: Codec) -> npt.NDArray[np.float32]:
    codes, _ = ops.assign(vectors, codec.centroids, exact=False)
    return residual_norms(vectors, codes, codec)


def _with_codec(transaction: Transaction, manifest: Manifest, codec: Codec) -> Manifest:
    if len(codec.centroids) == manifest.num_centroids:
        return manifest
    return dataclasses.replace(
        manifest,
        codec_folder=save_codec(transaction, codec),
        num_centroids=len(codec.centroids),
    )


def _records(transaction: Transaction, sources: Iterable[Source]) -> list[SegmentRecord]:
    """The segments' records, with what is newly deleted marked; empty ones are left out."""
    return [
        mark_deleted(transaction, source.record, source.wanted)
        for source in sources
        if source.wanted.any()
    ]


def mark_deleted(
    transaction: Transaction, record: SegmentRecord, live: npt.NDArray[np.bool_]
) -> SegmentRecord:
    """The record of a segment whose documents are `live`, bool (n_docs,), or deleted."""
    count = record.num_documents - int(np.count_nonzero(live))
    if count == record.num_deleted:
        return record
    name = transaction.new_name("deleted") + ".npy"
    write_npy(transaction.folder / name, np.packbits(~live))
    return dataclasses.replace(record, num_deleted=count, deleted=name)


def _appended(
    transaction: Transaction, codec: Codec, sources: list[Source], fresh: SegmentRecord
) -> tuple[SegmentRecord, ...]:
    """The records with the new segment, merged with those before it that are not much larger."""
    tail = [_source_of(transaction.folder, codec, fresh)]
    tokens = fresh.num_tokens
    while sources and sources[-1].record.num_tokens <= tokens:
        tail.insert(0, sources[-1])
        tokens += sources[-1].record.num_tokens
        sources = sources[:-1]
    if len(tail) > 1:
        fresh = copy_segments(transaction.new_folder("segment"), codec, tail)
    return (*_records(transaction, sources), fresh)


def _source_of(folder: Path, codec: Codec, record: SegmentRecord) -> Source:
    return Source(
        record,
        Segment.open(
            folder / record.name,
            codec.columns(),
            num_documents=record.num_documents,
            num_tokens=record.num_tokens,
            num_centroids=record.num_centroids,
        ),
        DocumentStore(folder / record.name / STORE, record.num_documents),
        np.ones(record.num_documents, np.bool_),
    )


def delete_documents(
    path: Path,
    ids: Iterable[DocumentId] | None,
    filter: Filter | None,  # noqa: A002
    *,
    timeout: float,
) -> int:
    """Mark documents as deleted; returns how many."""
    if (ids is None) == (filter is None):
        raise ValueError("delete: expected either ids or a filter")
    with update(path, timeout=timeout) as (transaction, base):
        snapshot = Snapshot(path, base)
        if ids is not None:
            positions = set(snapshot.library.positions(ids, name="ids"))
        else:
            found = filtered(filter, snapshot)
            positions = set(snapshot.positions[found[snapshot.positions]].tolist())
        if positions:
            records = _records(transaction, sources_of(snapshot, positions))
            transaction.commit(dataclasses.replace(snapshot.manifest, segments=tuple(records)))
        return len(positions)


def compact(path: Path, *, retrain: bool, seed: int, timeout: float, progress: bool) -> None:
    """Write all live documents as one segment; with `retrain` under a codec fitted to them."""
    with update(path, timeout=timeout) as (transaction, manifest):
        snapshot = Snapshot(path, manifest)
        sources = [each for each in sources_of(snapshot) if each.wanted.any()]
        tidy = len(sources) == len(manifest.segments) == 1 and manifest.segments[0].num_deleted == 0
        if not sources or (tidy and not retrain):
            return
        folder = transaction.new_folder("segment")
        if not retrain:
            segment = copy_segments(folder, snapshot.codec, sources)
        else:
            fitted, segment = _encoded_again(folder, snapshot, sources, seed, progress)
            manifest = dataclasses.replace(
                manifest,
                codec_folder=save_codec(transaction, fitted.codec),
                num_centroids=len(fitted.codec.centroids),
                residual_norm=fitted.residual_norm,
                lineage=new_lineage(),
            )
        transaction.commit(dataclasses.replace(manifest, segments=(segment,)))


def _encoded_again(
    folder: Path, snapshot: Snapshot, sources: list[Source], seed: int, progress: bool
) -> tuple[Fitted, SegmentRecord]:
    old = snapshot.codec
    chunks = (
        Chunk(old.decode(columns).astype(np.float16), doclens)
        for source in sources
        for columns, doclens in source.chunks()
        if len(doclens)
    )
    expected = sum(int(np.count_nonzero(each.wanted)) for each in sources)
    with DocumentWriter(folder / STORE) as store:
        for source in sources:
            store.add_rows(row for row in source.store.rows() if source.wanted[row[0]])
        store.close()
    options = BuildOptions(nbits=old.nbits, codec=old.name, seed=seed, progress=progress)
    return encode_stream(
        folder,
        chunks,
        lambda spill, complete: fit(spill, complete, expected, options),
        progress=progress,
    )
