"""What searching with the default settings keeps of exhaustive search, on judged collections.

    python bench_quality.py BEIR/{cranfield,cisi,med} --cache FOLDER

nDCG@10 of exact search over the uncompressed vectors, of exhaustive search of an index and of its
default search for k = 10; the difference of the last two in percent, and the share of the
exhaustive top 10 that the default search finds. Collections are encoded by the default model once.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from judged import MEASURE, Judged, read_judged

from colbert_fast import Index
from colbert_fast.evaluation import Run, measure, retrieve

K = 10


def build(folder: Path, judged: Judged, **options: object) -> Index:
    documents = np.split(judged.vectors, np.cumsum(judged.doclens)[:-1])
    return Index.build(folder, documents, ids=judged.ids, progress=False, **options)


def found(run: Run, truth: Run) -> float:
    """Share of the documents of `truth` that are in `run`."""
    hits = sum(len({d for d, _ in run[query]} & {d for d, _ in truth[query]}) for query in truth)
    return hits / sum(map(len, truth.values()))


def rows(judged: Judged, name: str, bits: list[int], points: list[dict[str, int]]) -> list[str]:
    """Lines of the table for a collection: one for each number of bits and point."""

    def value(run: Run) -> float:
        return measure(run, judged.qrels, measures=[MEASURE])[MEASURE]

    lines = []
    with tempfile.TemporaryDirectory() as folder:
        with build(Path(folder) / "exact.cf", judged, codec="float16") as index:
            exact = value(retrieve(index, judged.queries, k=K, exhaustive=True))
        for nbits in bits:
            with build(Path(folder) / f"{nbits}.cf", judged, nbits=nbits) as index:
                truth = retrieve(index, judged.queries, k=K, exhaustive=True)
                whole = value(truth)
                for point in points:
                    run = retrieve(index, judged.queries, k=K, **point)
                    asked = ", ".join(f"{key} {n}" for key, n in point.items()) or "default"
                    lines.append(
                        f"| {name} | {len(judged.ids):,} | {len(judged.queries):,} | {nbits} | "
                        f"{asked} | {exact:.4f} | {whole:.4f} | {value(run):.4f} | "
                        f"{100 * (value(run) / whole - 1):+.2f} % | {found(run, truth):.4f} |"
                    )
    return lines


def point(text: str) -> dict[str, int]:
    nprobe, ndocs = text.split(",")
    return {"nprobe": int(nprobe), "ndocs": int(ndocs)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("collections", type=Path, nargs="+")
    parser.add_argument("--cache", type=Path, required=True, help="folder for their vectors")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--points", type=point, nargs="*", default=[], metavar="NPROBE,NDOCS")
    parser.add_argument("--queries", type=int, help="the first so many of each collection")
    options = parser.parse_args()
    print("| collection | documents | queries | bits | search | exact | exhaustive | found | "
          "difference | recall@10 |", "|---" * 10 + "|", sep="\n")  # fmt: skip
    for folder in options.collections:
        judged = read_judged(folder, options.cache).first(options.queries)
        lines = rows(judged, folder.name, options.bits, [{}, *options.points])
        print(*lines, sep="\n", flush=True)


if __name__ == "__main__":
    main()
