"""Write the index of Stanford ColBERT, as colbert-ai opens it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from colbert_fast.storage.interop.stanford import IDS
from colbert_fast.storage.interop.torch_files import write_tensors

__all__ = ["StanfordWriter"]

_CHUNK_DOCUMENTS, _CHUNK_TOKENS = 25_000, 1 << 22  # 25,000 is Stanford's own


class StanfordWriter:
    """Append documents to an index in `folder`, which exists and is empty.

    A chunk is kept in memory until it is written, and to the end 8 bytes for every pair of a
    document and a centroid.

    Parameters
    ----------
    folder
    centroids : float32 (K, dim)
        Written as float16, which Stanford's code rounds them to on a GPU, unless that changes them.
    weights, cutoffs : float32
    nbits : int
    model : str or None
        The checkpoint that the index names.
    """

    def __init__(
        self,
        folder: Path,
        centroids: npt.NDArray[np.float32],
        weights: npt.NDArray[np.float32],
        nbits: int,
        *,
        cutoffs: npt.NDArray[np.float32] | None,
        model: str | None,
    ) -> None:
        if cutoffs is None:
            raise ValueError("cutoffs: Stanford's codec has some")
        self._folder, self._num_centroids = folder, len(centroids)
        self._config = {"dim": centroids.shape[1], "nbits": nbits, "checkpoint": model or "none"}
        self._documents = self._tokens = self._chunks = 0
        self._waiting: list[tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]] = []
        self._pairs: list[npt.NDArray[np.int64]] = []
        with np.errstate(over="ignore"):
            narrow = centroids.astype(np.float16)
        same = np.array_equal(narrow.astype(np.float32), centroids)
        write_tensors(folder / "centroids.pt", [narrow if same else centroids], as_tuple=False)
        write_tensors(folder / "buckets.pt", [cutoffs, weights], as_tuple=True)
        average = np.array(np.abs(weights).mean(), np.float32)  # nothing but a report reads it
        write_tensors(folder / "avg_residual.pt", [average], as_tuple=False)

    def append(
        self,
        codes: npt.NDArray[Any],
        residuals: npt.NDArray[np.uint8],
        doclens: npt.NDArray[np.int32],
    ) -> None:
        """Add whole documents."""
        self._waiting.append((codes, residuals, doclens))
        documents = sum(len(each[2]) for each in self._waiting)
        tokens = sum(len(each[0]) for each in self._waiting)
        if documents >= _CHUNK_DOCUMENTS or tokens >= _CHUNK_TOKENS:
            self._write_chunk()

    def _write_chunk(self) -> None:
        columns = zip(*self._waiting, strict=True)
        codes, residuals, doclens = (np.concatenate(each) for each in columns)
        folder, number = self._folder, self._chunks
        write_tensors(folder / f"{number}.codes.pt", [codes.astype(np.int32)], as_tuple=False)
        write_tensors(folder / f"{number}.residuals.pt", [residuals], as_tuple=False)
        self._write_json(f"doclens.{number}.json", doclens.tolist())
        chunk = {
            "passage_offset": self._documents,
            "num_passages": len(doclens),
            "num_embeddings": len(codes),
            "embedding_offset": self._tokens,
        }
        self._write_json(f"{number}.metadata.json", chunk)
        pids = np.repeat(np.arange(self._documents, self._documents + len(doclens)), doclens)
        pairs = codes.astype(np.int64) << 32 | pids
        pairs.sort()  # np.unique hashes, which takes six times as long
        self._pairs.append(pairs[np.append(True, pairs[1:] != pairs[:-1])])
        self._documents += len(doclens)
        self._tokens += len(codes)
        self._chunks += 1
        self._waiting = []

    def close(self, ids: Sequence[str | int]) -> None:
        """Write what is left: the lists, the settings, and what the documents are called."""
        if self._waiting:
            self._write_chunk()
        if not self._documents:
            raise ValueError("there are no documents to export")
        pairs = np.sort(np.concatenate(self._pairs))
        lengths = np.bincount(pairs >> 32, minlength=self._num_centroids)
        lists: list[npt.NDArray[Any]] = [
            (pairs & 0xFFFFFFFF).astype(np.int32),
            lengths.astype(np.int64),
        ]
        write_tensors(self._folder / "ivf.pid.pt", lists, as_tuple=True)
        shared = {"num_chunks": self._chunks, "num_partitions": self._num_centroids}
        average = self._tokens / self._documents
        plan = {"num_embeddings_est": float(self._tokens), "avg_doclen_est": average}
        found = {"num_embeddings": self._tokens, "avg_doclen": average}
        self._write_json("plan.json", {"config": self._config, **shared, **plan})
        self._write_json("metadata.json", {"config": self._config, **shared, **found})
        self._write_json(IDS, {str(number): each for number, each in enumerate(ids)})

    def _write_json(self, name: str, value: object) -> None:
        text = json.dumps(value, ensure_ascii=False)
        (self._folder / name).write_text(text + "\n", encoding="utf-8")
