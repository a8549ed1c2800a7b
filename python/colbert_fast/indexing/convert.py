"""Indexes from other libraries and for them: codes and residuals are copied, not made again."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from colbert_fast.compress.codec import Columns, ResidualCodec
from colbert_fast.errors import IndexExistsError, IndexFormatError
from colbert_fast.indexing.assembly import Source, finish_segment, residual_norms, sources_of
from colbert_fast.indexing.build import first_manifest, save_codec
from colbert_fast.indexing.ingest import length_of, read_documents
from colbert_fast.indexing.progress import progress_bar
from colbert_fast.storage.documents import (
    Document,
    DocumentId,
    DocumentWriter,
    check_id,
    check_many,
)
from colbert_fast.storage.files import sync_files, sync_folder
from colbert_fast.storage.interop import ForeignChunk, ForeignIndex, StanfordWriter, open_foreign
from colbert_fast.storage.manifest import STORE, SegmentRecord
from colbert_fast.storage.models import ModelRecord
from colbert_fast.storage.segments import SegmentWriter
from colbert_fast.storage.transactions import Transaction, building, check_target

if TYPE_CHECKING:
    from colbert_fast.model import ColBERT
    from colbert_fast.search.snapshot import Snapshot

__all__ = ["export_index", "import_index"]

logger = logging.getLogger(__name__)

_MEASURED = 64  # every so-manieth token tells how far tokens lie from their centroids
_HELDOUT = 50_000  # tokens that the levels of a codec are fitted to


def import_index(
    source: Path,
    path: Path,
    *,
    documents: Iterable[Any] | None,
    ids: Iterable[DocumentId] | None,
    model: ColBERT | None,
    overwrite: bool,
    progress: bool,
) -> None:
    """Write the index of another library as one of ours; see `Index.import_from`."""
    check_target(path, overwrite=overwrite)
    foreign = open_foreign(source)
    codec = ResidualCodec(
        foreign.centroids.astype(np.float32), foreign.weights, foreign.nbits, foreign.cutoffs
    )
    if model is not None and model.dim != codec.centroids.shape[1]:
        raise ValueError(
            f"model: its dim is {model.dim}, {source} has dim {codec.centroids.shape[1]}"
        )
    with building(path, overwrite=overwrite, resume=False) as transaction:
        named = _Named(foreign, documents, ids)
        segment, next_id = _write_segment(transaction, foreign, codec, named, progress)
        named.check_end()
        codec_folder = save_codec(transaction, codec)
        transaction.commit(
            first_manifest(
                codec,
                codec_folder,
                segment,
                residual_norm=segment.residual_norm,
                next_id=next_id,
                model=ModelRecord(foreign.model) if model is None else ModelRecord.of(model),
            )
        )
    logger.info("%s: %d documents of %s", path, segment.num_documents, source)


def _write_segment(
    transaction: Transaction,
    foreign: ForeignIndex,
    codec: ResidualCodec,
    named: _Named,
    progress: bool,
) -> tuple[SegmentRecord, int]:
    """The one segment, and the number that the next document would get as its id."""
    folder = transaction.new_folder("segment")
    total, measured = 0.0, 0
    with (
        DocumentWriter(folder / STORE) as store,
        SegmentWriter(folder, codec.columns()) as segment,
        progress_bar("importing", "doc", foreign.num_documents, progress) as bar,
    ):
        for chunk in foreign.chunks():
            for document in named.of(chunk):
                store.add(document)
            columns = codec.complete(chunk.codes.astype(np.int32), chunk.residuals)
            segment.append(columns, chunk.doclens.astype(np.int32))
            some = _every(_MEASURED, columns)
            norms = residual_norms(codec.decode(some), some["codes"], codec)
            total, measured = total + float(norms.sum(dtype=np.float64)), measured + len(norms)
            bar.update(len(chunk.pids))
        if segment.num_documents == 0:
            raise IndexFormatError(f"{foreign.path}: there are no documents in it")
        segment.close()
        store.close()
    return finish_segment(segment, codec, total / measured), max(
        store.next_id, foreign.num_documents
    )


def _every(step: int, columns: Columns) -> Columns:
    """The columns of every so-manieth token."""
    return {name: np.ascontiguousarray(rows[::step]) for name, rows in columns.items()}


class _Named:
    """Ids, texts and metadata for the documents of a foreign index, by their numbers in it."""

    def __init__(
        self,
        foreign: ForeignIndex,
        documents: Iterable[Any] | None,
        ids: Iterable[DocumentId] | None,
    ) -> None:
        for name, value in (("documents", documents), ("ids", ids)):
            check_many(name, value)
            count = length_of(value)
            if count not in (None, foreign.num_documents):
                raise ValueError(
                    f"{name}: {count} given, {foreign.path} has {foreign.num_documents}, deleted "
                    "ones included"
                )
        self._path, self._count = foreign.path, foreign.num_documents
        self._next = 0
        self._given: Iterator[Document]
        if documents is not None:
            self._given = read_documents(documents, ids)
        else:
            named: Iterable[Any] = foreign.ids or range(self._count) if ids is None else ids
            self._given = (Document(check_id(value, at)) for at, value in enumerate(named))

    def of(self, chunk: ForeignChunk) -> Iterator[Document]:
        """The chunk's documents; chunks come in order."""
        for number in chunk.pids.tolist():
            document = next(itertools.islice(self._given, number - self._next, None), None)
            self._next = number + 1
            if document is None:
                raise ValueError(
                    f"documents or ids: there is none for document {number} of {self._path}"
                )
            if document.embeddings is not None:
                raise ValueError(
                    f"document {document.id!r} has embeddings; those of {self._path} are imported"
                )
            yield document

    def check_end(self) -> None:
        """Raise ValueError unless as many were given as the index has."""
        given = self._next + sum(1 for _ in self._given)
        if given != self._count:
            raise ValueError(
                f"documents or ids: {given} given, {self._path} has {self._count}, deleted ones "
                "included"
            )


def export_index(snapshot: Snapshot, path: Path, *, recode: bool, progress: bool) -> None:
    """Write the live documents as an index of Stanford ColBERT; see `Index.export`."""
    if path.exists() or path.is_symlink():
        raise IndexExistsError(f"path {str(path)!r} already exists; choose another one")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path {str(path)!r}: {str(path.parent)!r} does not exist")
    sources = sources_of(snapshot)
    if not snapshot.num_documents:
        raise ValueError(f"{snapshot.path}: the index is empty; there is nothing to export")
    snapshot.check_codes()
    codec = _exported_codec(snapshot, sources, recode=recode)
    with _fresh_folder(path) as folder:
        writer = StanfordWriter(
            folder,
            codec.centroids,
            codec.weights,
            codec.nbits,
            cutoffs=codec.cutoffs,
            model=snapshot.manifest.model,
        )
        with progress_bar("exporting", "doc", snapshot.manifest.num_documents, progress) as bar:
            for columns, doclens in itertools.chain.from_iterable(map(Source.chunks, sources)):
                if codec is not snapshot.codec:
                    columns = codec.encode(snapshot.codec.decode(columns))
                writer.append(columns["codes"], columns["residuals"], doclens)
                bar.update(len(doclens))
        writer.close(list(snapshot.ids))


def _exported_codec(snapshot: Snapshot, sources: list[Source], *, recode: bool) -> ResidualCodec:
    """The codec that the export is in: the index's own if Stanford's code knows it."""
    codec, dim = snapshot.codec, snapshot.manifest.dim
    nbits = next(bits for bits in (1, 2, 4, 8, 16) if bits >= codec.nbits)
    nbits = min(nbits, 8)
    if dim % (8 * nbits):
        raise ValueError(
            f"dim {dim} with {nbits} bits: Stanford's code takes multiples of {8 * nbits} only"
        )
    if isinstance(codec, ResidualCodec) and codec.cutoffs is not None and codec.nbits == nbits:
        return codec
    if not recode:
        raise ValueError(
            f"the index has codec {codec.name!r} with {codec.nbits} bits, which Stanford's code "
            f"cannot read; recode=True decodes it and encodes it as 'plaid' with {nbits} bits, "
            "with a loss"
        )
    step = max(1, snapshot.manifest.num_tokens // _HELDOUT)
    sample: list[npt.NDArray[Any]] = [np.empty((0, dim), np.float32)]
    for columns, _ in itertools.chain.from_iterable(map(Source.chunks, sources)):
        sample.append(codec.decode(_every(step, columns)))
    return ResidualCodec.fit(codec.centroids, np.concatenate(sample), nbits=nbits, name="plaid")


@contextlib.contextmanager
def _fresh_folder(path: Path) -> Iterator[Path]:
    """A folder whose files are on disk when it becomes `path`, unless the body raises."""
    folder = path.with_name(f"{path.name}.exporting-{os.urandom(4).hex()}")
    folder.mkdir()  # with the permissions that the umask leaves, unlike mkdtemp
    try:
        yield folder
        sync_files(folder, [each.name for each in folder.iterdir()])
        folder.rename(path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
