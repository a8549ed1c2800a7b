"""Searching an index against brute force in torch and numpy over the uncompressed vectors."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import baselines as base
import numpy as np
import pytest
import torch
from baselines import DIM, DOCUMENT_TOKENS, QUERY_TOKENS
from machine import Machine

from colbert_fast import Index

K, N_QUERIES = 10, 16

PLAID_100 = {"nprobe": 2, "ndocs": 1024, "centroid_score_threshold": 0.45}

# What each way of searching must find of the true ten best, and how it is asked for.
WAYS: dict[str, tuple[float, dict[str, Any]]] = {
    "default": (0.9, {}),
    "plaid": (0.6, {"mode": "plaid"}),
    "plaid, as for k=100": (0.8, {"mode": "plaid", **PLAID_100}),
    "exhaustive": (1.0, {"exhaustive": True}),
}


class Bench:
    """A collection of documents about topics, its index, queries and their true answers."""

    def __init__(self, folder: Any, n_docs: int, num_centroids: int) -> None:
        rng = np.random.default_rng(11)
        vocabulary = rng.standard_normal((num_centroids, DIM), np.float32)
        vocabulary /= np.linalg.norm(vocabulary, axis=1, keepdims=True)
        # A document repeats few of the words, as a text about one subject does.
        words = rng.integers(num_centroids, size=(n_docs, DOCUMENT_TOKENS // 2))
        picks = rng.integers(DOCUMENT_TOKENS // 2, size=(n_docs, DOCUMENT_TOKENS))
        tokens = np.take_along_axis(words, picks, 1).ravel()
        noise = rng.standard_normal((len(tokens), DIM), np.float32) * np.float32(0.06)
        self.documents = vocabulary[tokens] + noise
        self.documents /= np.linalg.norm(self.documents, axis=1, keepdims=True)
        self.torch_documents = torch.from_numpy(self.documents)
        self.queries = [self.query_from(rng, rng.integers(n_docs)) for _ in range(N_QUERIES)]
        self.index = Index.build(
            folder, np.split(self.documents, n_docs), nbits=4, num_centroids=num_centroids,
            progress=False,
        )  # fmt: skip
        self.truth = [self.ids(query, exhaustive=True) for query in self.queries]

    def query_from(self, rng: np.random.Generator, document: int) -> np.ndarray:
        rows = document * DOCUMENT_TOKENS + rng.integers(DOCUMENT_TOKENS, size=QUERY_TOKENS)
        return base.clustered(rng, self.documents[rows], QUERY_TOKENS)

    def ids(self, query: np.ndarray, **options: Any) -> list[int]:
        return [hit.id for hit in self.index.search(query, K, **options)]

    def recall(self, found: list[list[int]]) -> float:
        pairs = zip(found, self.truth, strict=True)
        return sum(len(set(a) & set(b)) for a, b in pairs) / (K * N_QUERIES)

    def by_torch(self, query: np.ndarray) -> list[int]:
        similarities = self.torch_documents @ torch.from_numpy(query).T
        scores = similarities.view(-1, DOCUMENT_TOKENS, QUERY_TOKENS).amax(1).sum(1)
        return torch.topk(scores, K).indices.tolist()

    def by_numpy(self, query: np.ndarray) -> list[int]:
        similarities = self.documents @ query.T
        scores = similarities.reshape(-1, DOCUMENT_TOKENS, QUERY_TOKENS).max(1).sum(1)
        return np.argsort(-scores)[:K].tolist()


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    small = request.config.getoption("benchmark_disable")
    return Bench(
        tmp_path_factory.mktemp("bench") / "index", *((200, 64) if small else (4000, 2048))
    )


def describe(benchmark: Any, bench: Bench, found: list[list[int]], per_query: int) -> None:
    benchmark.extra_info["recall@10"] = round(bench.recall(found), 3)
    if benchmark.enabled:
        seconds = benchmark.stats.stats.median / per_query
        tokens = len(bench.documents)
        floor = 2 * tokens * DIM * QUERY_TOKENS / Machine.measure().float32
        benchmark.extra_info["ms per query"] = round(seconds * 1e3, 3)
        benchmark.extra_info["float32 brute force floor, ms, one thread"] = round(floor * 1e3, 3)


@pytest.mark.parametrize("way", WAYS)
def test_search(benchmark: Any, bench: Bench, way: str, threads: int) -> None:
    wanted, options = WAYS[way]
    found = [bench.ids(query, **options) for query in bench.queries]
    assert bench.recall(found) >= wanted
    benchmark.group = f"one query, {threads} threads"
    benchmark(bench.index.search, bench.queries[0], K, **options)
    describe(benchmark, bench, found, 1)


@pytest.mark.parametrize("baseline", ["torch", "numpy"])
def test_brute_force(benchmark: Any, bench: Bench, baseline: str, threads: int) -> None:
    search = bench.by_torch if baseline == "torch" else bench.by_numpy
    found = [search(query) for query in bench.queries]
    assert bench.recall(found) >= 0.85  # of the answers over 4-bit vectors
    benchmark.group = f"one query, {threads} threads"
    benchmark(search, bench.queries[0])
    describe(benchmark, bench, found, 1)


def test_batch(benchmark: Any, bench: Bench, threads: int) -> None:
    found = [[hit.id for hit in hits] for hits in bench.index.search(bench.queries, K)]
    assert found == [bench.ids(query) for query in bench.queries]
    benchmark.group = f"batch, {threads} threads"
    benchmark(bench.index.search, bench.queries, K)
    describe(benchmark, bench, found, N_QUERIES)


class Tiny:
    """Three documents, so that a search is hardly more than the way into C++ and back."""

    def __init__(self, folder: Any) -> None:
        rows = np.random.default_rng(5).standard_normal((4, QUERY_TOKENS, DIM), np.float32)
        rows /= np.linalg.norm(rows, axis=2, keepdims=True)
        *documents, self.query = rows
        self.index = Index.build(folder, documents, progress=False)
        self.ids = np.empty((1, 3), np.int64)
        self.scores = np.empty((1, 3), np.float32)
        self.starts = np.array([0, QUERY_TOKENS])

    def search(self) -> list[int]:
        return [hit.id for hit in self.index.search(self.query, K)]

    def core(self) -> list[int]:
        self.index._snapshot.searcher._core.search(
            self.query, self.starts, nprobe=4, ndocs=1024, plaid=False, threshold=-np.inf,
            exhaustive=True, subset=None, candidates=None, ids=self.ids, scores=self.scores,
        )  # fmt: skip
        return self.ids[0].tolist()


@pytest.mark.parametrize("part", ["search", "core"])
def test_python_around_a_search(benchmark: Any, tmp_path: Any, part: str) -> None:
    """The difference of the two rows is what Python adds to a query; it should be below 20 us."""
    tiny = Tiny(tmp_path / "tiny.cf")
    with base.limited_threads(1):
        assert tiny.search() == tiny.core()
        benchmark.group = "one query of three documents, 1 thread"
        benchmark(getattr(tiny, part))


@pytest.mark.parametrize(
    "code", ["pass", "import numpy", "import colbert_fast", "from colbert_fast import Index"]
)
def test_import(benchmark: Any, code: str) -> None:
    """A new interpreter each; importing with numpy should take less than 100 ms beyond `pass`."""
    command = [sys.executable, "-c", f"{code}; print('done')"]

    def run() -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert run() == "done\n"
    benchmark.group = "import, in a new interpreter"
    benchmark.pedantic(run, rounds=15)
