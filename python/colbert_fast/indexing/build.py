"""Build an index in one pass over the documents and in bounded memory.

The token vectors are spilled to a file as float16 until the documents end or the spill is full;
then centroids and codec are fitted on a sample of the spill, and the spilled vectors and whatever
still comes are compressed chunk by chunk. What grows with the collection are some 12 bytes per
document and, with the square root of its tokens, the centroids.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from colbert_fast.compress.codec import Codec, Float16Codec, ResidualCodec, check_dim
from colbert_fast.compress.device import BuildDevice
from colbert_fast.compress.kmeans import fit_centroids
from colbert_fast.indexing.assembly import encode_segment, residual_norms
from colbert_fast.indexing.estimate import announced
from colbert_fast.indexing.ingest import (
    Chunk,
    TokenStream,
    check_documents,
    length_of,
    read_documents,
)
from colbert_fast.indexing.options import BASE_BYTES, BuildOptions
from colbert_fast.indexing.progress import progress_bar
from colbert_fast.indexing.resume import ResumableEncoder
from colbert_fast.kernels import ops
from colbert_fast.search.snapshot import Snapshot
from colbert_fast.storage.documents import DocumentId, DocumentWriter
from colbert_fast.storage.manifest import (
    STORE,
    Manifest,
    SegmentRecord,
    library_version,
    new_lineage,
)
from colbert_fast.storage.models import ModelRecord, check_model
from colbert_fast.storage.spill import SPILL, Spill
from colbert_fast.storage.transactions import ENCODED, Transaction, building, check_target

if TYPE_CHECKING:
    from colbert_fast.model import ColBERT

__all__ = [
    "Fitted",
    "build_index",
    "encode_stream",
    "first_manifest",
    "fit",
    "save_codec",
]

logger = logging.getLogger(__name__)

_SPILL_TOKENS = 1 << 24  # 4 GiB of disk at 128 dimensions
_SAMPLE_TOKENS = 1 << 21  # 512 MiB of memory at 128 dimensions
_POINTS_PER_CENTROID = 256  # more make k-means slower, not better (faiss's default)
_LEAST_POINTS_PER_CENTROID = 32  # fewer fit the sample rather than the collection
_HELDOUT_SHARE, _HELDOUT_TOKENS = 0.05, 50_000


def build_index(
    path: Path,
    documents: Iterable[Any],
    options: BuildOptions,
    *,
    model: ColBERT | None = None,
    ids: Iterable[DocumentId] | None = None,
) -> None:
    """Write an index to `path`; see `Index.build` for the arguments and errors."""
    check_documents(documents, ids)
    check_target(path, overwrite=options.overwrite)
    if model is not None:
        check_dim(model.dim)
    expected = length_of(documents, ids)
    given = None if options.codec_from is None else _codec_of(options.codec_from, model)
    started = time.perf_counter()
    with building(path, overwrite=options.overwrite, resume=options.resume) as transaction:
        folder = transaction.new_folder("segment")
        with DocumentWriter(folder / STORE) as store:
            stream = TokenStream(
                read_documents(documents, ids),
                store,
                model=_encoder(transaction.folder, model, options),
                pool_factor=options.pool_factor,
                expected=expected,
                progress=options.progress,
                dim=0 if given is None else given.codec.centroids.shape[1],
            )
            (codec, residual_norm), segment = encode_stream(
                folder,
                announced(
                    iter(stream),
                    expected,
                    options,
                    transaction.folder,
                    sampled=_SAMPLE_TOKENS,
                    spilled=_SPILL_TOKENS,
                ),
                lambda spill, complete: given or fit(spill, complete, expected, options),
                progress=options.progress,
                device=options.device,
            )
            store.close()
        codec_folder = save_codec(transaction, codec)
        transaction.commit(
            first_manifest(
                codec,
                codec_folder,
                segment,
                residual_norm=residual_norm,
                next_id=store.next_id,
                model=ModelRecord.of(model),
            )
        )
    logger.info(
        "%s: %d documents, %d tokens, %d centroids in %.1f s",
        path,
        segment.num_documents,
        segment.num_tokens,
        segment.num_centroids,
        time.perf_counter() - started,
    )


def first_manifest(
    codec: Codec,
    codec_folder: str,
    segment: SegmentRecord,
    *,
    residual_norm: float,
    next_id: int,
    model: ModelRecord,
) -> Manifest:
    """The manifest of a new index; a transaction fills in the rest."""
    return Manifest(
        lineage=new_lineage(),
        generation=0,
        next_number=0,
        next_id=next_id,
        codec=codec.name,
        nbits=codec.nbits,
        dim=codec.centroids.shape[1],
        num_centroids=len(codec.centroids),
        codec_folder=codec_folder,
        residual_norm=residual_norm,
        segments=(segment,),
        model=model.name,
        files={},
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        library_version=library_version(),
        model_fingerprint=model.fingerprint,
        model_settings=model.settings,
    )


def _codec_of(path: Path, model: ColBERT | None) -> Fitted:
    """The codec of another index."""
    snapshot = Snapshot.open(path)
    if model is not None:
        check_model(snapshot.manifest, model)
    return Fitted(snapshot.codec, snapshot.manifest.residual_norm)


def _encoder(
    folder: Path, model: ColBERT | None, options: BuildOptions
) -> ColBERT | ResumableEncoder | None:
    if model is None or not options.resume:
        return model
    return ResumableEncoder(model, folder / ENCODED)


def save_codec(transaction: Transaction, codec: Codec) -> str:
    """Write the codec's files into a new folder of the index; returns its name."""
    folder = transaction.new_folder("codec")
    codec.save(folder)
    return folder.name


def encode_stream(
    folder: Path,
    chunks: Iterator[Chunk],
    choose: Callable[[Spill, bool], Fitted],
    *,
    progress: bool,
    device: BuildDevice = "cpu",
) -> tuple[Fitted, SegmentRecord]:
    """Write the columns and lists of the segment `folder`, which exists.

    `choose` is given the vectors that were spilled, and whether these are all; the codec that it
    returns encodes the segment, on `device`.
    """
    with Spill(folder.with_name(SPILL)) as spill:
        first_left = _fill(spill, chunks)
        complete = first_left is None
        fitted = choose(spill, complete)
        everything = itertools.chain(
            itertools.starmap(Chunk, spill.chunks()),
            [] if first_left is None else [first_left],
            chunks,
        )
        total = spill.num_tokens if complete else None
        with progress_bar("compressing", "token", total, progress) as bar:
            return fitted, encode_segment(
                folder, fitted.codec, everything, bar.update, device=device
            )


def _fill(spill: Spill, chunks: Iterator[Chunk]) -> Chunk | None:
    """Spill chunks until they end or the spill is full; then the first that is left."""
    for chunk in chunks:
        check_dim(chunk.embeddings.shape[1])
        if spill.num_tokens >= _SPILL_TOKENS:
            return chunk
        spill.append(*chunk)
    return None


class Fitted(NamedTuple):
    """A codec, and the mean distance from its centroids of vectors that did not fit them."""

    codec: Codec
    residual_norm: float


def fit(spill: Spill, complete: bool, expected: int | None, options: BuildOptions) -> Fitted:
    """Centroids and codec from a sample of the spilled documents.

    `expected` is the number of documents where it is known, for when more come than were spilled.
    Sample and number of centroids follow ColBERTv2; a longer stream is sampled from its start.
    """
    if complete:
        expected = None
    else:
        logger.warning(
            "centroids are fitted on the first %d documents only (%d tokens); shuffle the "
            "documents if they are sorted, as by topic or date",
            spill.num_documents,
            spill.num_tokens,
        )
    num_documents = max(spill.num_documents, expected or 0)
    num_tokens = int(spill.num_tokens * (num_documents / spill.num_documents))
    wanted = options.num_centroids or 1 << int(math.log2(16 * math.sqrt(num_tokens)))
    rng = np.random.default_rng(options.seed)
    sample = spill.sample(
        rng,
        min(1 + int(16 * math.sqrt(120 * num_documents)), num_documents),
        min(_POINTS_PER_CENTROID * wanted, _sampled(wanted, spill.dim, options)),
    )
    if options.num_centroids is None:
        wanted = _supported(wanted, len(sample), num_tokens)
    # Documents lie in random order in the sample, so its end is as random as any other part.
    held = min(max(1, int(_HELDOUT_SHARE * len(sample))), _HELDOUT_TOKENS)
    points = sample[:-held] if held < len(sample) else sample
    logger.info("k-means: %d of %d tokens into %d centroids", len(points), num_tokens, wanted)
    with progress_bar("k-means", "step", options.kmeans_iterations, options.progress) as bar:
        centroids = fit_centroids(
            points,
            wanted,
            iterations=options.kmeans_iterations,
            seed=options.seed,
            on_iteration=bar.update,
            device=options.device,
        )
    heldout = sample[-held:]
    codec: Codec = Float16Codec.fit(centroids)
    if options.codec != "float16":
        codec = ResidualCodec.fit(centroids, heldout, nbits=options.nbits, name=options.codec)
    codes, _ = ops.assign(heldout, codec.centroids)
    return Fitted(codec, float(residual_norms(heldout, codes, codec).mean(dtype=np.float64)))


def _sampled(num_centroids: int, dim: int, options: BuildOptions) -> int:
    """How many tokens may be sampled."""
    if options.memory_budget is None:
        return _SAMPLE_TOKENS
    needed = BASE_BYTES + 3 * 4 * dim * num_centroids
    most = (options.memory_budget - needed) // (4 * dim)
    if most < _LEAST_POINTS_PER_CENTROID:
        raise ValueError(
            f"memory_budget must be above {needed} bytes for {num_centroids} centroids of {dim} "
            f"dimensions, got {options.memory_budget}"
        )
    return min(most, _SAMPLE_TOKENS)


def _supported(wanted: int, sampled: int, num_tokens: int) -> int:
    """The default number of centroids, or fewer if the sample is too small a part to fit them."""
    most = max(1, sampled // _LEAST_POINTS_PER_CENTROID)
    if sampled >= num_tokens or wanted <= most:
        return wanted
    logger.warning(
        "%d centroids instead of %d: only %d of about %d tokens were sampled to fit them; pass "
        "num_centroids= to have more",
        most,
        wanted,
        sampled,
        num_tokens,
    )
    return most
