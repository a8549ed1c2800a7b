"""Make the small indexes of other libraries that tests/test_interop.py imports.

    make_foreign.py LIBRARY FOLDER     # stanford, fast-plaid or xtr-warp-rs

Each runs in an environment of its own: those of benchmarks/peers. Of fast-plaid's index all is kept
but its lock and the uncompressed vectors.

FOLDER gets the index as the library wrote it, and beside it what the library answered:
`queries.npy` float32 (n, tokens, dim), `pids.npy` int64 (n, 10) and `scores.npy` float32 (n, 10),
best first. All parts of the index are looked at in these searches, so the answers are those of an
exhaustive search.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DIM, DOCUMENTS, QUERIES, QUERY_TOKENS, TOP, SEED = 32, 60, 6, 8, 10, 20261125

Answers = tuple[list[list[int]], list[list[float]]]


def make_inputs() -> tuple[list[np.ndarray], np.ndarray]:
    """Documents, float32 (tokens, DIM) each, and queries that are noisy parts of them."""
    rng = np.random.default_rng(SEED)
    topics = rng.standard_normal((48, DIM))

    def near(rows: np.ndarray, noise: float) -> np.ndarray:
        moved = rows + noise * rng.standard_normal(rows.shape)
        return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)

    lengths = rng.integers(1, 20, DOCUMENTS)
    documents = [near(topics[rng.integers(0, len(topics), n)], 0.6) for n in lengths]
    chosen = [rng.choice(DOCUMENTS, QUERY_TOKENS) for _ in range(QUERIES)]
    queries = [near(np.stack([documents[d][-1] for d in row]), 0.1) for row in chosen]
    return documents, np.stack(queries)


def stanford(path: Path, documents: list[np.ndarray], queries: np.ndarray) -> Answers:
    """Stanford's indexer takes texts: a stand-in for its encoder hands it our vectors."""
    import torch
    from colbert.indexing import collection_indexer
    from colbert.infra.config import ColBERTConfig
    from colbert.modeling.colbert import ColBERT
    from colbert.search.index_storage import IndexScorer

    class Vectors:
        def __init__(self, *_: Any) -> None:
            pass

        def encode_passages(self, passages: list[str]) -> tuple[Any, list[int]]:
            chosen = [documents[int(passage)] for passage in passages]
            return torch.from_numpy(np.concatenate(chosen)), list(map(len, chosen))

    config = ColBERTConfig(
        nbits=2,
        dim=DIM,
        index_path=str(path),
        index_name=path.name,
        checkpoint="none",
        root=".",
        gpus=0,
        avoid_fork_if_possible=True,
    )
    collection_indexer.CollectionEncoder = Vectors
    collection_indexer.Checkpoint = lambda *_, **__: None
    path.mkdir()
    random.seed(SEED)
    torch.manual_seed(SEED)
    passages = list(map(str, range(DOCUMENTS)))
    collection_indexer.CollectionIndexer(config, passages, verbose=1).run([[None]])
    ColBERT.try_load_torch_extensions(use_gpu=False)
    scorer = IndexScorer(str(path), use_gpu=False)
    config.configure(ncells=64, centroid_score_threshold=0.0, ndocs=4 * DOCUMENTS)
    found = [scorer.rank(config, torch.from_numpy(query)[None]) for query in queries]
    return [pids[:TOP] for pids, _ in found], [scores[:TOP] for _, scores in found]


def fast_plaid(path: Path, documents: list[np.ndarray], queries: np.ndarray) -> Answers:
    import torch
    from fast_plaid.search import FastPlaid

    made = FastPlaid(index=str(path), device="cpu")
    made.create(documents_embeddings=list(map(torch.from_numpy, documents)), nbits=4)
    found = made.search(
        torch.from_numpy(queries), top_k=TOP, n_ivf_probe=64, n_full_scores=4 * DOCUMENTS
    )
    for name in ("embeddings.npy", "plaid.lock"):
        (path / name).unlink()
    return split_pairs(found)


def xtr_warp_rs(path: Path, documents: list[np.ndarray], queries: np.ndarray) -> Answers:
    import torch
    from xtr_warp.search import XTRWarp

    made = XTRWarp(index=str(path), device="cpu")
    made.create(list(map(torch.from_numpy, documents)), device="cpu", nbits=4)
    made.load(device="cpu")
    found = made.search(
        torch.from_numpy(queries), top_k=TOP, nprobe=64, bound=256, centroid_score_threshold=0.0
    )
    return split_pairs(found)


def split_pairs(found: list[list[tuple[int, float]]]) -> Answers:
    return [[p for p, _ in hits] for hits in found], [[s for _, s in hits] for hits in found]


LIBRARIES: dict[str, Callable[..., Answers]] = {
    "stanford": stanford,
    "fast-plaid": fast_plaid,
    "xtr-warp-rs": xtr_warp_rs,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    folder: Path = options.folder.absolute()
    folder.mkdir(parents=True)
    os.chdir(folder)  # so that no index holds the path of this machine
    documents, queries = make_inputs()
    pids, scores = LIBRARIES[options.library](Path("index"), documents, queries)
    np.save("queries.npy", queries)
    np.save("pids.npy", np.array(pids, np.int64))
    np.save("scores.npy", np.array(scores, np.float32))


if __name__ == "__main__":
    main()
