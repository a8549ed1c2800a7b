"""The files of a collection of token vectors, which everyone reads alike."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np


class Inputs(NamedTuple):
    """A collection; see embeddings.py for how it is made."""

    embeddings: np.ndarray  # float16 (n_tokens, 128), unit vectors, documents back to back
    doclens: np.ndarray  # int32 (n_docs,)
    queries: np.ndarray  # float32 (n_queries, 32, 128)
    truth: np.ndarray  # int32 (n_judged, 100): best documents of the first queries, by exact MaxSim


def read_inputs(folder: Path) -> Inputs:
    """Map the vectors privately: pages count as memory only once somebody writes to them.

    The mapping is writable because torch warns about arrays that are not.
    """
    return Inputs(
        np.load(folder / "embeddings.npy", mmap_mode="c"),
        np.load(folder / "doclens.npy"),
        np.load(folder / "queries.npy"),
        np.load(folder / "gt_ids.npy"),
    )


def recall(found: list[list[int]], truth: np.ndarray, k: int) -> float:
    """Share of the exact top k that are among the first k found, over all queries."""
    pairs = zip(found, truth.tolist(), strict=True)
    hits = sum(len(set(ids[:k]) & set(best[:k])) for ids, best in pairs)
    return hits / (k * len(found))
