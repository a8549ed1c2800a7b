"""Make the golden indexes of the format that this version writes.

    make_index.py FOLDER     # such as golden/format-3

An index of each codec, with what it answers: `queries.npy` float32 (n, tokens, dim), and for each
codec `pids-CODEC.npy` int64 (n, 5) and `scores-CODEC.npy` float32 (n, 5). The one of the default
codec has texts, metadata, two segments, further centroids and a deleted document.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from colbert_fast import Index

DIM, SEED, TOP = 32, 20261125, 5


def main(folder: Path) -> None:
    rng = np.random.default_rng(SEED)
    folder.mkdir(parents=True)

    def unit(shape: tuple[int, ...]) -> np.ndarray:
        rows = rng.standard_normal(shape, np.float32)
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    documents = [unit((int(n), DIM)) for n in rng.integers(1, 9, 40)]
    queries = unit((4, 6, DIM))
    np.save(folder / "queries.npy", queries)
    for codec in ("default", "plaid", "float16"):
        path = folder / codec
        rows = [
            {"id": i, "embeddings": each, "text": f"text {i}", "year": 2000 + i}
            for i, each in enumerate(documents)
        ]
        given = rows[:30] if codec == "default" else documents
        index = Index.build(path, given, codec=codec, num_centroids=16, progress=False)
        if codec == "default":
            index.add(rows[30:], progress=False)
            index.delete([7])
        (path / "writer.lock").unlink()
        found = index.search(queries, TOP)
        np.save(folder / f"pids-{codec}.npy", [[hit.id for hit in hits] for hits in found])
        scores = np.array([[hit.score for hit in hits] for hits in found], np.float32)
        np.save(folder / f"scores-{codec}.npy", scores)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
