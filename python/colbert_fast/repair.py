"""What can be saved of a damaged index."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from colbert_fast.assembly import invert
from colbert_fast.compress.codec import Codec, ResidualCodec, open_codec
from colbert_fast.errors import IndexFormatError
from colbert_fast.kernels import ops
from colbert_fast.storage.files import damage_of
from colbert_fast.storage.manifest import Manifest, SegmentRecord
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
    with update(path, timeout=timeout) as transaction:
        manifest = Manifest.read(path)
        damage = {
            name: error
            for name, record in manifest.files.items()
            if (error := damage_of(path / name, record)) is not None
        }
        if not damage:
            return RepairReport((), 0, 0, ())
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
        segments, rebuilt, restored, lost = [], [], 0, 0
        for segment in manifest.segments:
            files = {
                name.rpartition("/")[2] for name in damage if name.startswith(f"{segment.name}/")
            }
            if files - _DERIVED:
                lost += segment.num_documents - segment.num_deleted
                continue
            if files:
                rebuilt += [f"{segment.name}/{name}" for name in sorted(files)]
                segment = _rebuilt(transaction, codec, segment, files)
            if segment.deleted in damage:
                restored += segment.num_deleted
                segment = dataclasses.replace(segment, deleted=None, num_deleted=0)
            segments.append(segment)
        transaction.commit(dataclasses.replace(manifest, segments=tuple(segments)))
    return RepairReport(tuple(rebuilt), restored, lost, tuple(map(str, damage.values())))


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
