"""What can be saved of a damaged index."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from colbert_fast.compress.codec import Codec, ResidualCodec, open_codec
from colbert_fast.errors import IndexFormatError
from colbert_fast.indexing.assembly import invert
from colbert_fast.indexing.update import mark_deleted
from colbert_fast.kernels import ops
from colbert_fast.search.snapshot import read_live
from colbert_fast.search.tuning import Tuning
from colbert_fast.storage.documents import DocumentId, DocumentStore
from colbert_fast.storage.files import damage_of
from colbert_fast.storage.manifest import STORE, TUNING, Manifest, SegmentRecord
from colbert_fast.storage.segments import open_column, write_npy
from colbert_fast.storage.transactions import Transaction, update

__all__ = ["RepairReport", "repair_index"]

UInt8 = npt.NDArray[np.uint8]

_BLOCK = 1 << 20  # tokens whose codes are unpacked at once
_LISTS = frozenset({"list_counts.npy", "list_offsets.npy", "list_data.npy"})
_DERIVED = _LISTS | {"inverse_norms.npy"}


class RepairReport(NamedTuple):
    """What `Index.repair` found and did.

    Attributes
    ----------
    rebuilt
        Files that were made anew from others.
    restored
        How many documents are found again though they were deleted: their marks are lost.
    lost
        How many documents are gone, with the segments whose own files were damaged.
    damage
        What was wrong, a line for each file.
    """

    rebuilt: tuple[str, ...]
    restored: int
    lost: int
    damage: tuple[str, ...]


def repair_index(path: Path, *, timeout: float) -> RepairReport:
    """Commit what is sound of the index at `path`; see `Index.repair`."""
    with update(path, timeout=timeout) as (transaction, manifest):
        tuning = _drop_damaged_tuning(path, manifest)
        damage = {
            name: error
            for name, record in manifest.files.items()
            if (error := damage_of(path / name, record)) is not None
        }
        if not damage:
            return RepairReport((), 0, 0, tuning)
        for name, error in damage.items():
            if name.startswith(f"{manifest.codec_folder}/"):
                raise IndexFormatError(f"{error}; without it no vector can be read: build again")
        codec = open_codec(
            path / manifest.codec_folder,
            manifest.codec,
            nbits=manifest.nbits,
            dim=manifest.dim,
            num_centroids=manifest.num_centroids,
        )
        segments, rebuilt, lost = [], [], []
        for segment in manifest.segments:
            files = {
                name.rpartition("/")[2] for name in damage if name.startswith(f"{segment.name}/")
            }
            if files - _DERIVED:
                lost.append(segment)
                continue
            if files:
                rebuilt += [f"{segment.name}/{name}" for name in sorted(files)]
                segment = _rebuilt(transaction, codec, segment, files)
            segments.append(segment)
        marked = _marked(transaction, segments, damage)
        transaction.commit(dataclasses.replace(manifest, segments=tuple(marked)))
        for segment in lost:  # somebody may save more of it by hand
            with contextlib.suppress(FileNotFoundError):  # all of it may be gone
                (path / segment.name).rename(path / f"lost-{segment.name}")
    return RepairReport(
        tuple(rebuilt),
        sum(each.num_deleted for each in segments) - sum(each.num_deleted for each in marked),
        sum(each.num_documents - each.num_deleted for each in lost),
        (*tuning, *map(str, damage.values())),
    )


def _drop_damaged_tuning(path: Path, manifest: Manifest) -> tuple[str, ...]:
    try:
        Tuning.read(path, manifest)
    except IndexFormatError as error:
        (path / TUNING).unlink()
        return (str(error),)
    return ()


def _marked(
    transaction: Transaction, segments: Sequence[SegmentRecord], damage: Mapping[str, object]
) -> list[SegmentRecord]:
    """The segments, with marks anew where theirs are lost: of ids that a later segment has."""
    if not any(each.deleted in damage for each in segments):
        return list(segments)
    seen: set[DocumentId] = set()
    # A document that replaced another is in a later segment. Sound segments first, all the same:
    # what they have is certain.
    order = sorted(range(len(segments)), key=lambda at: (segments[at].deleted in damage, -at))
    records = list(segments)
    for at in order:
        segment = segments[at]
        store = DocumentStore(transaction.folder / segment.name / STORE, segment.num_documents)
        ids = store.read_ids()
        store.close()
        if segment.deleted in damage:
            live = np.array([each not in seen for each in ids])
            records[at] = mark_deleted(
                transaction, dataclasses.replace(segment, deleted=None, num_deleted=0), live
            )
        else:
            live = read_live(transaction.folder, [segment])
        seen.update(itertools.compress(ids, live))
    return [each for each in records if each.num_deleted < each.num_documents]


def _rebuilt(
    transaction: Transaction, codec: Codec, segment: SegmentRecord, files: set[str]
) -> SegmentRecord:
    """A copy of the segment in which `files` are made of the others."""
    old, name = transaction.folder / segment.name, transaction.new_name("segment")
    new = transaction.folder / name
    shutil.copytree(old, new, ignore=shutil.ignore_patterns(*files, *_LISTS))
    if "inverse_norms.npy" in files and isinstance(codec, ResidualCodec):
        write_npy(new / "inverse_norms.npy", _inverse_norms(new, codec, segment))
    invert(new, segment.num_centroids)
    return dataclasses.replace(segment, name=name)


def _inverse_norms(folder: Path, codec: ResidualCodec, segment: SegmentRecord) -> UInt8:
    """The inverse norms of a segment, computed as its encoding did."""
    columns = {
        name: open_column(folder / f"{name}.npy", column, segment.num_tokens)
        for name, column in codec.columns(segment.num_centroids).items()
        if name != "inverse_norms"
    }
    norms = np.empty(segment.num_tokens, np.uint8)
    for start in range(0, segment.num_tokens, _BLOCK):
        block = slice(start, start + _BLOCK)
        rows = {name: each[block] for name, each in columns.items()}
        norms[block] = ops.inverse_norms(
            rows["codes"], rows["residuals"], codec.centroids, codec.weights,
            scales=rows.get("scales"),
        )  # fmt: skip
    return norms
