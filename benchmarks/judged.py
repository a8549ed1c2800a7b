"""Judged collections as token vectors of the default model: encoded once, then kept."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from colbert_fast.evaluation import load_beir

MEASURE = "nDCG@10"


class Judged(NamedTuple):
    """A collection with its queries and judgements."""

    ids: list[str]
    vectors: np.ndarray  # float16 (n_tokens, dim), documents back to back
    doclens: np.ndarray  # int32 (n_docs,)
    queries: dict[str, np.ndarray]  # float32 (tokens, dim) each
    qrels: dict[str, dict[str, int]]

    def first(self, count: int | None) -> Judged:
        """The same with the first `count` queries; None: all."""
        chosen = list(self.queries)[:count]
        return self._replace(
            queries={query: self.queries[query] for query in chosen},
            qrels={query: self.qrels[query] for query in chosen},
        )


def read_judged(folder: Path, cache: Path) -> Judged:
    """Read a folder in BEIR layout; its vectors are kept in `cache`, under its name."""
    beir = load_beir(folder)
    file = cache / f"{folder.name}.npz"
    if not file.exists():
        encode(folder, file)
    arrays = np.load(file)
    rows = np.split(arrays["queries"], np.cumsum(arrays["querylens"])[:-1])
    queries = dict(zip(beir.queries, rows, strict=True))
    ids = arrays["ids"].tolist()
    return Judged(ids, arrays["vectors"], arrays["doclens"], queries, beir.qrels)


def encode(folder: Path, file: Path) -> None:
    from colbert_fast.model import ColBERT

    beir, model = load_beir(folder), ColBERT.from_pretrained()
    documents = list(beir.documents())
    vectors = model.encode_documents([document["text"] for document in documents])
    queries = model.encode_queries(list(beir.queries.values()))
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        file,
        ids=[document["id"] for document in documents],
        vectors=np.concatenate(vectors).astype(np.float16),
        doclens=np.array([len(rows) for rows in vectors], np.int32),
        queries=np.concatenate(queries),
        querylens=[len(rows) for rows in queries],
    )
