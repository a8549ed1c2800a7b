"""Indexes that were built apart with the same centroids, put together without encoding anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from colbert_fast.compress.codec import Codec
from colbert_fast.indexing.assembly import copy_segments, sources_of
from colbert_fast.indexing.build import first_manifest, save_codec
from colbert_fast.search.snapshot import Snapshot
from colbert_fast.storage.models import ModelRecord
from colbert_fast.storage.transactions import building, check_target

__all__ = ["merge_indexes"]


def merge_indexes(path: Path, parts: Sequence[Path], *, overwrite: bool) -> None:
    """Write the documents of all `parts`, in order, as an index; see `Index.merge`."""
    if not parts:
        raise ValueError("indexes: there are none to merge")
    check_target(path, overwrite=overwrite)
    snapshots = [Snapshot.open(each) for each in parts]
    if not any(each.num_documents for each in snapshots):
        raise ValueError("indexes: all their documents are deleted")
    # The one with the most centroids can read what was encoded with the first of them.
    widest = max(snapshots, key=lambda each: each.manifest.num_centroids)
    for each in snapshots:
        _check_compatible(each, widest)
    codec = widest.codec
    with building(path, overwrite=overwrite, resume=False) as transaction:
        folder = transaction.new_folder("segment")
        sources = [source for each in snapshots for source in sources_of(each)]
        segment = copy_segments(folder, codec, [each for each in sources if each.wanted.any()])
        transaction.commit(
            first_manifest(
                codec,
                save_codec(transaction, codec),
                segment,
                residual_norm=widest.manifest.residual_norm,
                next_id=max(each.manifest.next_id for each in snapshots),
                model=_model_of(snapshots),
            )
        )


def _model_of(parts: Sequence[Snapshot]) -> ModelRecord:
    """The first that is named: a part may have been built from embeddings."""
    for each in (part.manifest for part in parts):
        if each.model is not None:
            return ModelRecord(each.model, each.model_fingerprint, each.model_settings)
    return ModelRecord()


def _check_compatible(part: Snapshot, widest: Snapshot) -> None:
    same = (part.manifest.codec, part.manifest.nbits, part.manifest.dim) == (
        widest.manifest.codec, widest.manifest.nbits, widest.manifest.dim,
    ) and _extends(widest.codec, part.codec)  # fmt: skip
    if not same:
        raise ValueError(
            f"indexes: {str(part.path)!r} and {str(widest.path)!r} have other centroids or codecs; "
            "build the parts with codec_from= the first of them"
        )
    known = {part.manifest.model_fingerprint, widest.manifest.model_fingerprint} - {None}
    if len(known) > 1:
        raise ValueError(
            f"indexes: {str(part.path)!r} and {str(widest.path)!r} were built with models of other "
            "weights"
        )


def _extends(codec: Codec, other: Codec) -> bool:
    """Whether `codec` decodes what `other` has encoded."""
    if not np.array_equal(codec.centroids[: len(other.centroids)], other.centroids):
        return False
    return all(
        np.array_equal(getattr(codec, name), getattr(other, name))
        for name in ("weights", "cutoffs")
        if getattr(codec, name, None) is not None
    )
