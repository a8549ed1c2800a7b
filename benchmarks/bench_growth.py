"""How build and search grow with the collection: every stage beside its floor, at equal recall.

    python bench_growth.py DATA --passages 5000 25000 250000

DATA has the collection `medium` of peers/README.md. Smaller ones are its start, larger ones are
spliced from it on the way into the index. CPU time, which other work on the machine disturbs least;
queries run on one thread.

Stages of a build are timed around the functions that do them. Stages of a search are differences
of searches: with two documents allowed only the way to the candidates is left, with k = 1 their
scores by centroids and of the best of them by likely tokens come on top, and 33 documents in int8
(`search_stages`). A floor is what the arithmetic alone would take
at the rates that torch and numpy reach in the same run, or the bytes at the bandwidth seen.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from machine import Machine

import colbert_fast
from colbert_fast import Index
from colbert_fast.compress.codec import ResidualCodec
from colbert_fast.indexing import assembly, build
from colbert_fast.kernels import ops
from colbert_fast.search.params import SearchParams
from colbert_fast.storage.codes import code_bits

sys.path.append(str(Path(__file__).parent / "peers"))
from embeddings import Spliced

DIM, QUERY_TOKENS, K = 128, 32, 10
ITERATIONS = 4  # of k-means, the default of a build
INT8_STEP = 32  # documents after the first k that get int8 scores at least (search/refining.cpp)
# Tried in turn until one finds as much as is wanted: nprobe, ndocs.
LADDER = (
    (1, 128), (1, 256), (2, 256), (2, 512), (4, 512), (2, 1024), (4, 1024), (4, 2048), (8, 2048),
    (16, 4096),
)  # fmt: skip


class Collection:
    """`passages` passages, the start of `medium` or spliced from it."""

    def __init__(self, source: Path, passages: int) -> None:
        self.source = source
        doclens = np.load(source / "doclens.npy")
        self.spliced = Spliced(source, passages) if passages > len(doclens) else None
        self.doclens = doclens[:passages] if self.spliced is None else self.spliced.doclens
        self.tokens = int(self.doclens.sum())
        self.splicing = 0.0  # CPU seconds

    def documents(self) -> Iterator[np.ndarray]:
        blocks = self.blocks()
        rows = next(blocks)
        done = 0
        for length in self.doclens.tolist():
            if done == len(rows):
                done, rows = 0, next(blocks)
            yield rows[done : done + length]
            done += length

    def blocks(self) -> Iterator[np.ndarray]:
        if self.spliced is None:
            yield np.load(self.source / "embeddings.npy", mmap_mode="r")[: self.tokens]
            return
        start = time.process_time()
        for block in self.spliced.blocks():
            self.splicing += time.process_time() - start
            yield block
            start = time.process_time()


class Stage:
    """A function that is watched while it is used by others."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name, self.function = owner, name, getattr(owner, name)
        self.seconds = 0.0  # CPU, of all threads
        self.first_argument: Any = None  # of the last call

    def watching(self) -> Any:
        def call(first: Any, *args: Any, **options: Any) -> Any:
            start = time.process_time()
            result = self.function(first, *args, **options)
            self.seconds += time.process_time() - start
            self.first_argument = first
            return result

        return mock.patch.object(self.owner, self.name, call)


class Built(NamedTuple):
    """An index, what its build took in CPU seconds, and what floors are computed from."""

    index: Index
    seconds: dict[str, float]
    sampled: int  # tokens that k-means saw
    centroids: np.ndarray
    lists: ops.InvertedLists


def build_index(path: Path, collection: Collection) -> Built:
    """Build with the default settings; "rest" is reading, checking, spilling and writing."""
    stages = {
        "k-means": Stage(build, "fit_centroids"),
        "compress": Stage(ResidualCodec, "encode"),
        "lists": Stage(assembly, "invert"),
    }
    with contextlib.ExitStack() as stack:
        for stage in stages.values():
            stack.enter_context(stage.watching())
        start = time.process_time()
        ids = range(len(collection.doclens))
        index = Index.build(path, collection.documents(), ids=ids, progress=False)
        whole = time.process_time() - start - collection.splicing
    seconds = {name: stage.seconds for name, stage in stages.items()}
    seconds["rest"] = whole - sum(seconds.values())
    [segment] = index._snapshot.segments
    return Built(
        index,
        seconds,
        len(stages["k-means"].first_argument),
        stages["compress"].first_argument.centroids,
        ops.InvertedLists(segment.list_counts, segment.list_offsets, segment.list_data),
    )


def build_floors(built: Built, tokens: int, machine: Machine) -> dict[str, float]:
    """Seconds of one core.

    Of two-level assignment: the heads of all groups and the centroids of one, in int8. Of the
    trellis: for two paths a square and a choice for each of 16 weights and a dimension, in float32.
    Of the lists: codes are read twice and postings written once.
    """
    k = len(built.centroids)
    assign = 2 * DIM * (6 * math.sqrt(k) + math.sqrt(k) / 6) / machine.int8
    trellis = 2 * DIM * 16 * 3 / machine.float32
    listed = 2 * tokens * code_bits(k) / 8 + built.lists.data.nbytes
    return {
        "k-means": ITERATIONS * built.sampled * assign,
        "compress": tokens * (assign + trellis),
        "lists": listed / machine.memory,
    }


class Point(NamedTuple):
    """Settings of a search, and the share of the exhaustive top 10 that they find.

    `default_recall` is that of a search without settings.
    """

    nprobe: int
    ndocs: int
    recall: float
    default_recall: float

    @classmethod
    def cheapest(cls, index: Index, queries: np.ndarray, wanted: float) -> Point:
        """The first rung of the ladder that finds `wanted`, or the last."""
        truth = [{hit.id for hit in hits} for hits in index.search(queries, K, exhaustive=True)]

        def recall(**options: int) -> float:
            pairs = zip(index.search(queries, K, **options), truth, strict=True)
            found = sum(len({hit.id for hit in hits} & best) for hits, best in pairs)
            return found / (K * len(queries))

        for nprobe, ndocs in LADDER:
            found = recall(nprobe=nprobe, ndocs=ndocs)
            if found >= wanted:
                break
        return cls(nprobe, ndocs, found, recall())


class Work(NamedTuple):
    """What the searches of one setting look at, per query."""

    cells: float  # lists read
    list_bytes: float
    documents: float  # gathered
    tokens: float  # of them

    @classmethod
    def count(cls, built: Built, queries: np.ndarray, nprobe: int, doclens: np.ndarray) -> Work:
        rows = []
        for query in queries:
            scores = ops.centroid_scores(query, built.centroids)
            cells = np.unique(ops.top_centroids(scores, nprobe))
            lengths = np.diff(built.lists.offsets)[cells]
            documents = ops.gather_documents(built.lists, cells, len(doclens))
            rows.append((len(cells), lengths.sum(), len(documents), doclens[documents].sum()))
        return cls(*np.mean(rows, axis=0).tolist())


def time_searches(
    searches: dict[str, Callable[[int], object]], count: int, rounds: int = 7
) -> dict[str, float]:
    """Seconds a query: the least of the rounds, in which the searches take turns, averaged.

    A query comes again only after all others, so that its documents have left the caches.
    """
    least = {name: np.full(count, np.inf) for name in searches}
    for _ in range(rounds):
        for name, search in searches.items():
            for query in range(count):
                start = time.thread_time()
                search(query)
                least[name][query] = min(least[name][query], time.thread_time() - start)
    return {name: float(seconds.mean()) for name, seconds in least.items()}


def search_stages(
    built: Built, queries: np.ndarray, point: Point, doclens: np.ndarray
) -> tuple[dict[str, float], Work]:
    """Seconds of each stage of a query, and what it looks at."""
    index, n_docs = built.index, len(doclens)
    nprobe, ndocs = point.nprobe, point.ndocs
    other = 4 * nprobe
    rng = np.random.default_rng(1)
    everything = np.ones(n_docs, np.bool_)
    two, few, more, added = [], [], [], 0
    for query in queries:
        ranking = [hit.id for hit in index.search(query, 256)]
        others = rng.choice(np.setdiff1d(np.arange(n_docs), ranking), 256, replace=False)
        added += int(doclens[others].sum())
        for masks, allowed in (
            (two, ranking[:2]), (few, ranking), (more, [*ranking, *others.tolist()]),
        ):  # fmt: skip
            mask = np.zeros(n_docs, np.bool_)
            mask[allowed] = True
            masks.append(mask)

    def search(i: int, k: int = K, **options: Any) -> None:
        index.search(queries[i], k, **options)

    def probe(i: int, nprobe: int) -> None:
        """Of two documents; `Index.search` would probe more for so few."""
        params = SearchParams.resolve(1, nprobe=nprobe, ndocs=1)
        index._snapshot.searcher.search([queries[i]], params, subset=two[i])

    seconds = time_searches(
        {
            "whole": lambda i: search(i, nprobe=nprobe, ndocs=ndocs),
            "default": lambda i: search(i),
            "masked": lambda i: search(i, nprobe=nprobe, ndocs=ndocs, subset=everything),
            "cells": lambda i: probe(i, nprobe),
            "more cells": lambda i: probe(i, other),
            "one": lambda i: search(i, 1, nprobe=nprobe, ndocs=ndocs),
            "256 scanned": lambda i: search(i, ndocs=512, subset=few[i]),
            "512 scanned": lambda i: search(i, ndocs=512, subset=more[i]),
        },
        len(queries),
    )
    work = Work.count(built, queries, nprobe, doclens)
    wider = Work.count(built, queries, other, doclens)
    mask = max(0.0, seconds["masked"] - seconds["whole"])
    per_byte = (seconds["more cells"] - seconds["cells"]) / (wider.list_bytes - work.list_bytes)
    gather = per_byte * work.list_bytes
    per_token = (seconds["512 scanned"] - seconds["256 scanned"]) / (added / len(queries))
    document = float(np.mean([doclens[mask].mean() for mask in few]))
    least = per_token * (1 + INT8_STEP) * document
    return {
        "centroids": seconds["cells"] - mask - gather,
        "gather": gather,
        "approximate, likely": seconds["one"] - seconds["cells"] + mask - least,
        "int8, exact": seconds["whole"] - seconds["one"] + least,
        "whole": seconds["whole"],
        "default": seconds["default"],
        "int8 a token": per_token,
        "document": document,
    }, work


def search_floors(
    built: Built, stages: dict[str, float], work: Work, machine: Machine
) -> dict[str, float]:
    """Seconds of one core.

    Of approximate scores alone, of all documents gathered. Of the last stage: int8 products of as
    few documents as it can do with, float32 ones of the tokens that win, of `K` documents.
    """
    token = 2 * DIM * QUERY_TOKENS
    return {
        "centroids": token * len(built.centroids) / machine.int8,
        "gather": work.list_bytes / machine.memory,
        "approximate, likely": work.tokens * (2 / machine.memory + QUERY_TOKENS / machine.cache),
        "int8, exact": (K + INT8_STEP) * stages["document"] * token / machine.int8
        + K * QUERY_TOKENS * token / machine.float32,
    }


SEARCH_STAGES = ("centroids", "gather", "approximate, likely", "int8, exact")
BUILD_STAGES = ("k-means", "compress", "lists")
SIZE = ("passages", "M tokens", "K")
SEARCH_HEAD = (
    *SIZE, "nprobe, ndocs", "recall@10", "gathered", "ms", "exponent", *SEARCH_STAGES,
    "int8, ns a token", "default: ms, recall",
)  # fmt: skip
BUILD_HEAD = (*SIZE, "CPU s", "exponent", *BUILD_STAGES, "rest", "us a token")


class Measured(NamedTuple):
    """What was measured of a collection."""

    tokens: int
    search: float  # seconds
    build: float
    search_row: list[str]
    build_row: list[str]


def measure(
    data: Path, passages: int, queries: np.ndarray, recall: float, machine: Machine
) -> Measured:
    """Build and search `passages` passages; the rows lack their exponents."""
    collection = Collection(data / "emb" / "medium", passages)
    threads = colbert_fast.get_num_threads()
    with tempfile.TemporaryDirectory(dir=data) as folder:
        built = build_index(Path(folder) / "index.cf", collection)
        point = Point.cheapest(built.index, queries, recall)
        colbert_fast.set_num_threads(1)
        stages, work = search_stages(built, queries, point, collection.doclens)
        colbert_fast.set_num_threads(threads)
        built.index.close()
    tokens, total = collection.tokens, sum(built.seconds.values())
    size = [f"{passages:,}", f"{tokens / 1e6:.2f}", f"{len(built.centroids):,}"]
    search_row = [
        *size,
        f"{point.nprobe}, {point.ndocs}",
        f"{point.recall:.3f}",
        f"{work.documents:,.0f}",
        f"{1e3 * stages['whole']:.2f}",
        *cells(stages, search_floors(built, stages, work, machine), SEARCH_STAGES, 1e3),
        f"{1e9 * stages['int8 a token']:.0f}",
        f"{1e3 * stages['default']:.2f}, {point.default_recall:.3f}",
    ]
    build_row = [
        *size,
        f"{total:.1f}",
        *cells(built.seconds, build_floors(built, tokens, machine), BUILD_STAGES, 1),
        f"{built.seconds['rest']:.1f}",
        f"{1e6 * total / tokens:.1f}",
    ]
    return Measured(tokens, stages["whole"], total, search_row, build_row)


def cells(
    seconds: dict[str, float], floors: dict[str, float], stages: tuple[str, ...], scale: float
) -> list[str]:
    """Each stage's time with its floor in brackets."""
    return [f"{seconds[s] * scale:.2f} ({floors[s] * scale:.2f})" for s in stages]


def table(head: tuple[str, ...], rows: list[list[str]], exponents: list[str]) -> None:
    """Print Markdown, the exponents where the head has them."""
    at = head.index("exponent")
    print("", "| " + " | ".join(head) + " |", "|---" * len(head) + "|", sep="\n")
    for row, exponent in zip(rows, exponents, strict=True):
        print("| " + " | ".join([*row[:at], exponent, *row[at:]]) + " |")


def exponents(sizes: list[int], seconds: list[float]) -> list[str]:
    """Of the power of the size that the time grew by since the row above."""
    steps = np.diff(np.log(seconds)) / np.diff(np.log(sizes))
    return ["", *(f"{step:.2f}" for step in steps)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--passages", type=int, nargs="+", default=[5_000, 25_000, 250_000])
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--recall", type=float, default=0.95, help="of the exhaustive top 10")
    options = parser.parse_args()
    queries = np.load(options.data / "emb" / "medium" / "queries.npy")[: options.queries]
    machine = Machine.measure()
    print("one core: {:.0f} GFLOP/s float32, {:.0f} GOP/s int8, {:.0f} GB/s, {:.0f} in the cache"
          .format(*(rate / 1e9 for rate in machine)), flush=True)  # fmt: skip
    rows: list[Measured] = []
    for passages in options.passages:
        rows.append(measure(options.data, passages, queries, options.recall, machine))
        print(*rows[-1].search_row, *rows[-1].build_row, sep=" | ", file=sys.stderr)
    sizes = [row.tokens for row in rows]
    table(SEARCH_HEAD, [row.search_row for row in rows],
          exponents(sizes, [row.search for row in rows]))  # fmt: skip
    table(BUILD_HEAD, [row.build_row for row in rows],
          exponents(sizes, [row.build for row in rows]))  # fmt: skip


if __name__ == "__main__":
    main()
