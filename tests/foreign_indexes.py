"""The golden index of Stanford ColBERT, and the same codes and residuals in every other layout.

The other layouts are written here by hand, as their libraries write them; of fast-plaid and
xtr-warp-rs there are golden indexes as well, next-plaid and xtr-warp are not on PyPI. So the
answers that all of them must give are Stanford's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from colbert_fast.storage.interop import open_foreign
from colbert_fast.storage.interop.torch_files import write_tensors

FOREIGN = Path(__file__).parent / "golden"
GOLDEN = FOREIGN / "stanford"
INDEX = GOLDEN / "index"
QUERIES = np.load(GOLDEN / "queries.npy")
PIDS = np.load(GOLDEN / "pids.npy")
SCORES = np.load(GOLDEN / "scores.npy")


class Arrays(NamedTuple):
    """The whole golden index."""

    centroids: np.ndarray
    cutoffs: np.ndarray
    weights: np.ndarray
    codes: np.ndarray
    residuals: np.ndarray
    doclens: np.ndarray


def golden_arrays() -> Arrays:
    opened = open_foreign(INDEX)
    [chunk] = opened.chunks()
    return Arrays(opened.centroids, opened.cutoffs, opened.weights, *chunk[:3])


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _chunks(arrays: Arrays) -> list[tuple[slice, slice]]:
    """Documents and tokens of two chunks of different sizes."""
    cut = len(arrays.doclens) // 3
    tokens = int(arrays.doclens[:cut].sum())
    return [(slice(0, cut), slice(0, tokens)), (slice(cut, None), slice(tokens, None))]


def write_stanford(folder: Path) -> None:
    """Two chunks, by our own writer of tensors."""
    arrays = golden_arrays()
    folder.mkdir()
    write_json(folder / "metadata.json", {"config": {"dim": 32, "nbits": 2}, "num_chunks": 2})
    write_tensors(folder / "centroids.pt", [arrays.centroids], as_tuple=False)
    write_tensors(folder / "buckets.pt", [arrays.cutoffs, arrays.weights], as_tuple=True)
    for number, (documents, tokens) in enumerate(_chunks(arrays)):
        for name, rows in (("codes", arrays.codes), ("residuals", arrays.residuals)):
            write_tensors(folder / f"{number}.{name}.pt", [rows[tokens]], as_tuple=False)
        write_json(folder / f"doclens.{number}.json", arrays.doclens[documents].tolist())


def write_plaid(folder: Path, *, compatible: bool = False) -> None:
    """fast-plaid's chunks, or next-plaid's."""
    arrays = golden_arrays()
    folder.mkdir()
    metadata = {"num_chunks": 2, "nbits": 2, "num_partitions": 64, "num_documents": 60}
    write_json(folder / "metadata.json", metadata | {"next_plaid_compatible": compatible})
    centroids = arrays.centroids.astype(np.float32 if compatible else np.float16)
    np.save(folder / "centroids.npy", centroids)
    np.save(folder / "bucket_cutoffs.npy", arrays.cutoffs)
    np.save(folder / "bucket_weights.npy", arrays.weights)
    for number, (documents, tokens) in enumerate(_chunks(arrays)):
        np.save(folder / f"{number}.codes.npy", arrays.codes[tokens].astype(np.int64))
        np.save(folder / f"{number}.residuals.npy", arrays.residuals[tokens])
        write_json(folder / f"doclens.{number}.json", arrays.doclens[documents].tolist())


def write_fast_plaid(folder: Path) -> None:
    write_plaid(folder)


def write_next_plaid(folder: Path) -> None:
    write_plaid(folder, compatible=True)


def write_merged(folder: Path) -> None:
    """What fast-plaid 1.7 leaves after it has loaded an index: no chunks, and rows of padding."""
    write_plaid(folder)
    for name in ("codes", "residuals"):
        chunks = [folder / f"{number}.{name}.npy" for number in (0, 1)]
        rows = [np.load(chunk) for chunk in chunks]
        padding = np.zeros((5, *rows[0].shape[1:]), rows[0].dtype)
        np.save(folder / f"merged_{name}.npy", np.concatenate([*rows, padding]))
        manifest = {
            chunk.name: {"rows": len(each), "merged": True, "mtime": None}
            for chunk, each in zip(chunks, rows, strict=True)
        }
        write_json(folder / f"merged_{name}.manifest.json", manifest)
        for chunk in chunks:
            chunk.unlink()


def _write_warp(folder: Path, suffix: str) -> None:
    arrays = golden_arrays()
    folder.mkdir()
    np.save(folder / "centroids.npy", arrays.centroids.astype(np.float32))
    np.save(folder / "bucket_cutoffs.npy", arrays.cutoffs)
    np.save(folder / "bucket_weights.npy", arrays.weights)
    order = np.argsort(arrays.codes, kind="stable")
    pids = np.repeat(np.arange(len(arrays.doclens)), arrays.doclens)[order]
    compacted = {
        "sizes": np.bincount(arrays.codes, minlength=len(arrays.centroids)),
        "codes": pids.astype(np.int64 if suffix == "npy" else np.int32),
        "residuals": arrays.residuals[order],
    }
    for name, rows in compacted.items():
        path = folder / f"{name}.compacted.{suffix}"
        if suffix == "npy":
            np.save(path, rows)
        else:
            write_tensors(path, [rows], as_tuple=False)


def write_xtr_warp(folder: Path) -> None:
    _write_warp(folder, "pt")


def write_xtr_warp_rs(folder: Path) -> None:
    _write_warp(folder, "npy")


LAYOUTS = {
    "stanford": write_stanford,
    "fast-plaid": write_fast_plaid,
    "fast-plaid 1.7": write_merged,
    "next-plaid": write_next_plaid,
    "xtr-warp": write_xtr_warp,
    "xtr-warp-rs": write_xtr_warp_rs,
}
