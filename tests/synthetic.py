"""Small seeded collections, for the tests of building and searching."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from colbert_fast.index import Index

WORDS = ["sky", "blue", "light", "sea", "red", "green", "apple", "tree", "river", "stone", "cloud"]


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def clustered(
    rng: np.random.Generator,
    num_documents: int,
    *,
    dim: int = 64,
    topics: int = 40,
    spread: float = 0.5,
    longest: int = 12,
) -> list[np.ndarray]:
    """Documents of 1 to `longest` unit vectors, each near one of `topics` directions."""
    centres = unit(rng.standard_normal((topics, dim)))
    documents = []
    for _ in range(num_documents):
        home = centres[rng.integers(topics, size=rng.integers(1, longest + 1))]
        noise = unit(rng.standard_normal(home.shape)) * spread
        documents.append(unit(home + noise))
    return documents


def sentences(rng: np.random.Generator, count: int) -> list[str]:
    return [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(count)]


def brute_force(query: np.ndarray, documents: Sequence[np.ndarray]) -> np.ndarray:
    """MaxSim of the query (nq, dim) with every document, float64 (n_docs,)."""
    query = query.astype(np.float64)
    return np.array([(query @ each.astype(np.float64).T).max(axis=1).sum() for each in documents])


def make(path: Path, documents: Any, **options: Any) -> Index:
    return Index.build(path, documents, progress=False, **options)


def files(path: Path) -> dict[str, bytes]:
    """Contents of all files but the manifest, which holds the date."""
    paths = (each for each in path.rglob("*") if each.is_file() and each.name != "manifest.json")
    return {str(each.relative_to(path)): each.read_bytes() for each in paths}
