"""BM25, late interaction and both together on judged collections: nDCG@10 and time per query.

``python benchmarks/bench_hybrid.py FOLDER cranfield cisi ... --indexes CACHE`` takes BEIR folders
under FOLDER and prints a table in Markdown. Indexes are built with the offline model, or another
(``--model``), and kept in CACHE. Times are of one thread, query by query, the median over the first
200 queries of the best of three rounds in which the ways take turns; queries are encoded before.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from colbert_fast import ColBERT, Index, set_num_threads
from colbert_fast.evaluation import BeirFolder, load_beir, measure
from colbert_fast.search.bm25 import best

K, ROUNDS, TIMED = 10, 3, 200
Search = Callable[[np.ndarray, str], list[tuple[str, float]]]


def ways(index: Index) -> dict[str, Search]:
    """Everything that is compared, as functions of a query's vectors and text."""

    def by_bm25(_: np.ndarray, text: str) -> list[tuple[str, float]]:
        scores = index._snapshot.bm25.score(text)
        return [(str(index.ids[at]), float(scores[at])) for at in best(scores, K).tolist()]

    def dense(**options: Any) -> Search:
        return lambda rows, _: hits(index.search(rows, K, **options))

    def with_text(**options: Any) -> Search:
        return lambda rows, text: hits(index.search(rows, K, texts=text, **options))

    return {
        "BM25": by_bm25,
        "default": dense(),
        "plaid": dense(mode="plaid"),
        "rerank": with_text(mode="rerank"),
        "rerank 1000": with_text(mode="rerank", ndocs=1000),
        "hybrid": with_text(mode="hybrid"),
    }


def hits(found: list[Any]) -> list[tuple[str, float]]:
    return [(str(hit.id), hit.score) for hit in found]


def check(index: Index, rows: np.ndarray, text: str) -> None:
    """What is reranked has the scores of an exhaustive search."""
    exact = dict(hits(index.search(rows, len(index), exhaustive=True)))
    for name, score in hits(index.search(rows, K, mode="rerank", texts=text)):
        assert exact[name] == score, name


def run(
    index: Index, beir: BeirFolder, vectors: list[np.ndarray]
) -> dict[str, tuple[float, float]]:
    """Way to nDCG@10 and milliseconds."""
    texts = list(beir.queries.values())
    asked = list(zip(vectors, texts, strict=True))
    check(index, vectors[0], texts[0])
    found = {way: [search(*each) for each in asked] for way, search in ways(index).items()}
    seconds = {way: np.full(len(asked[:TIMED]), np.inf) for way in found}
    for _ in range(ROUNDS):
        for way, search in ways(index).items():
            for at, each in enumerate(asked[:TIMED]):
                start = time.perf_counter()
                search(*each)
                seconds[way][at] = min(seconds[way][at], time.perf_counter() - start)
    return {
        way: (
            measure(dict(zip(beir.queries, found[way], strict=True)), beir.qrels)["nDCG@10"],
            float(np.median(seconds[way])) * 1e3,
        )
        for way in found
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("collections", nargs="+")
    parser.add_argument("--indexes", type=Path, required=True)
    parser.add_argument("--model")
    arguments = parser.parse_args()
    model = ColBERT.from_pretrained(arguments.model)
    table: dict[str, dict[str, tuple[float, float]]] = {}
    for name in arguments.collections:
        beir = load_beir(arguments.folder / name)
        path = arguments.indexes / f"{name}.cf"
        if not path.exists():
            Index.build(path, beir.documents(), model=model, progress=False).close()
        vectors = model.encode_queries(list(beir.queries.values()))
        set_num_threads(1)
        with Index.open(path, model=model) as index:
            table[name] = run(index, beir, vectors)
    print("| | " + " | ".join(table) + " | mean |")
    print("|---|" + "---|" * (len(table) + 1))
    for way in next(iter(table.values())):
        cells = [rows[way] for rows in table.values()]
        mean = np.mean([ndcg for ndcg, _ in cells])
        shown = " | ".join(f"{ndcg:.3f} / {milliseconds:.2f}" for ndcg, milliseconds in cells)
        print(f"| {way} | {shown} | {mean:.3f} |")


if __name__ == "__main__":
    main()
