"""Build an index in one pass over the documents and in bounded memory.

The token vectors are spilled to a file as float16 until the documents end or the spill is full;
then centroids and codec are fitted on a sample of the spill, and the spilled vectors and whatever
still comes are compressed chunk by chunk. What grows with the collection is at most 3 bytes per
token while the inverted lists are made (after 256 MiB of it, that is), and 12 bytes per document.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sized
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from colbert_fast.compress.codec import (
    Codec,
    Float16Codec,
    ResidualCodec,
    check_dim,
    check_nbits,
)
from colbert_fast.compress.kmeans import fit_centroids
from colbert_fast.ingest import Chunk, TokenStream, check_ids, read_documents
from colbert_fast.kernels import ops
from colbert_fast.storage.documents import DocumentId, DocumentWriter
from colbert_fast.storage.manifest import (
    CODECS,
    STORE,
    CodecName,
    Manifest,
    SegmentRecord,
    fingerprint_of,
    library_version,
    record_files,
)
from colbert_fast.storage.segments import SegmentWriter
from colbert_fast.storage.spill import Spill
from colbert_fast.storage.transactions import check_target, replace_folder

if TYPE_CHECKING:
    from colbert_fast.model import ColBERT

__all__ = ["BuildOptions", "build_index"]

logger = logging.getLogger(__name__)

_SEGMENT = "segment-000000"
_SPILL_TOKENS = 1 << 24  # 4 GiB of disk at 128 dimensions
_SAMPLE_TOKENS = 1 << 21  # 512 MiB of memory at 128 dimensions
_POINTS_PER_CENTROID = 256  # more make k-means slower, not better (faiss's default)
_LEAST_POINTS_PER_CENTROID = 32  # fewer fit the sample rather than the collection
_HELDOUT_SHARE, _HELDOUT_TOKENS = 0.05, 50_000


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """The settings of a build; see `Index.build`."""

    nbits: int = 2
    codec: CodecName = "default"
    num_centroids: int | None = None
    kmeans_iterations: int = 4
    seed: int = 42
    pool_factor: int = 1
    overwrite: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise ValueError(f"codec must be one of {CODECS}, got {self.codec!r}")
        if self.codec != "float16":
            check_nbits(self.nbits)
        for name, least in (("num_centroids", 1), ("kmeans_iterations", 0), ("pool_factor", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not isinstance(self.pool_factor, int):
            raise TypeError(f"pool_factor must be an int, got {self.pool_factor!r}")


def build_index(
    path: Path,
    documents: Iterable[Any],
    options: BuildOptions,
    *,
    model: ColBERT | None = None,
    ids: Iterable[DocumentId] | None = None,
) -> None:
    """Write an index to `path`; see `Index.build` for the arguments and errors."""
    _check_documents(documents, ids)
    check_target(path, overwrite=options.overwrite)
    if model is not None:
        check_dim(model.dim)
    expected = _length(documents, ids)
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(replace_folder(path, overwrite=options.overwrite))
        store = stack.enter_context(DocumentWriter(folder / STORE))
        stream = TokenStream(
            read_documents(documents, ids),
            store,
            model=model,
            pool_factor=options.pool_factor,
            expected=expected,
            progress=options.progress,
        )
        codec, segment = _write_segment(folder, stream, expected, options)
        store.close()
        _write_manifest(folder, codec, segment, model)
    logger.info(
        "%s: %d documents, %d tokens, %d centroids in %.1f s",
        path,
        segment.num_documents,
        segment.num_tokens,
        len(codec.centroids),
        time.perf_counter() - started,
    )


def _check_documents(documents: Iterable[Any], ids: Iterable[DocumentId] | None) -> None:
    for name, value in (("documents", documents), ("ids", ids)):
        if isinstance(value, (str, bytes, dict)):
            raise TypeError(f"{name} must be an iterable of many, got one {type(value).__name__}")
    check_ids(documents, ids)


def _length(*sources: Any) -> int | None:
    """How many there will be, where any of the sources knows."""
    for source in sources:
        if isinstance(source, Sized):
            return len(source)
    return None


def _write_segment(
    folder: Path, stream: TokenStream, expected: int | None, options: BuildOptions
) -> tuple[Codec, SegmentWriter]:
    """Everything between the documents and the finished segment files."""
    chunks = iter(stream)
    with Spill(folder / "spill.tmp") as spill:
        first_left = _fill(spill, chunks)
        complete = first_left is None
        if not complete:
            logger.warning(
                "centroids are fitted on the first %d documents only (%d tokens); shuffle the "
                "documents if they are sorted, as by topic or date",
                spill.num_documents,
                spill.num_tokens,
            )
        codec = _fit(spill, expected if not complete else None, options)
        spilled = itertools.starmap(Chunk, spill.chunks())
        left = [] if first_left is None else [first_left]
        total = spill.num_tokens if complete else None
        with (
            SegmentWriter(folder / _SEGMENT, codec.columns) as segment,
            _bar("compressing", "token", total, options) as bar,
        ):
            for chunk in itertools.chain(spilled, left, chunks):
                segment.append(codec.encode(chunk.embeddings), chunk.doclens)
                bar.update(len(chunk.embeddings))
            segment.close()
    _write_lists(segment, len(codec.centroids))
    return codec, segment


def _fill(spill: Spill, chunks: Iterator[Chunk]) -> Chunk | None:
    """Spill chunks until they end or the spill is full; then the first that is left."""
    for chunk in chunks:
        check_dim(chunk.embeddings.shape[1])
        if spill.num_tokens >= _SPILL_TOKENS:
            return chunk
        spill.append(*chunk)
    return None


def _fit(spill: Spill, expected: int | None, options: BuildOptions) -> Codec:
    """Centroids and codec from a sample of the spilled documents.

    `expected` is the number of documents where it is known and more than were spilled. Sample and
    number of centroids follow ColBERTv2; a stream longer than the spill is sampled from its start.
    """
    num_documents = max(spill.num_documents, expected or 0)
    num_tokens = int(spill.num_tokens * (num_documents / spill.num_documents))
    wanted = options.num_centroids or 1 << int(math.log2(16 * math.sqrt(num_tokens)))
    rng = np.random.default_rng(options.seed)
    sample = spill.sample(
        rng,
        min(1 + int(16 * math.sqrt(120 * num_documents)), num_documents),
        min(_POINTS_PER_CENTROID * wanted, _SAMPLE_TOKENS),
    )
    if options.num_centroids is None:
        wanted = _supported(wanted, len(sample), num_tokens)
    # Documents lie in random order in the sample, so its end is as random as any other part.
    held = min(max(1, int(_HELDOUT_SHARE * len(sample))), _HELDOUT_TOKENS)
    points = sample[:-held] if held < len(sample) else sample
    logger.info("k-means: %d of %d tokens into %d centroids", len(points), num_tokens, wanted)
    with _bar("k-means", "step", options.kmeans_iterations, options) as bar:
        centroids = fit_centroids(
            points,
            wanted,
            iterations=options.kmeans_iterations,
            seed=options.seed,
            on_iteration=bar.update,
        )
    if options.codec == "float16":
        return Float16Codec.fit(centroids)
    return ResidualCodec.fit(centroids, sample[-held:], nbits=options.nbits, name=options.codec)


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


def _write_lists(segment: SegmentWriter, num_centroids: int) -> None:
    codes = np.load(segment.folder / "codes.npy", mmap_mode="r")
    doclens = np.load(segment.folder / "doclens.npy")
    lists = ops.build_lists(codes, doclens, num_centroids)
    segment.write_lists(lists.counts, lists.offsets, lists.data)


def _write_manifest(
    folder: Path, codec: Codec, segment: SegmentWriter, model: ColBERT | None
) -> None:
    own = codec.save(folder)
    arrays = sorted(f"{_SEGMENT}/{entry.name}" for entry in segment.folder.iterdir())
    Manifest(
        codec=codec.name,
        nbits=codec.nbits,
        dim=codec.centroids.shape[1],
        num_centroids=len(codec.centroids),
        num_documents=segment.num_documents,
        num_tokens=segment.num_tokens,
        segments=(SegmentRecord(_SEGMENT, segment.num_documents, segment.num_tokens),),
        model=None if model is None else str(model.name),
        files=record_files(folder, [STORE, *own, *arrays]),
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        library_version=library_version(),
        model_fingerprint=fingerprint_of(model),
    ).write(folder)


def _bar(stage: str, unit: str, total: int | None, options: BuildOptions) -> tqdm[Any]:
    """A progress bar; silent unless `progress`."""
    return tqdm(
        desc=stage, unit=unit, unit_scale=unit == "token", total=total, disable=not options.progress
    )
