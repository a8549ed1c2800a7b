"""The benchmark beside other libraries, with ours alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("psutil")
PEERS = Path(__file__).parents[1] / "benchmarks" / "peers"
DIM, N_DOCS, N_QUERIES = 128, 300, 8

pytestmark = [
    pytest.mark.skipif(not PEERS.exists(), reason="benchmarks/ is not here"),
    pytest.mark.skipif(sys.platform != "linux", reason="pins processes as Linux does"),
]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Import the scripts as they import each other."""
    monkeypatch.syspath_prepend(str(PEERS))


@pytest.mark.usefixtures("modules")
def test_exact_top(monkeypatch: pytest.MonkeyPatch) -> None:
    import embeddings

    monkeypatch.setattr(embeddings, "SCORED_AT_ONCE", 50)
    rng = np.random.default_rng(1)
    doclens = rng.integers(1, 70, size=N_DOCS)
    vectors = unit(rng.standard_normal((doclens.sum(), DIM))).astype(np.float16)
    queries = unit(rng.standard_normal((N_QUERIES, 32, DIM))).astype(np.float32)
    documents = np.split(vectors.astype(np.float64), np.cumsum(doclens)[:-1])
    scores = [[(query @ d.T).max(1).sum() for d in documents] for query in queries]
    wanted = np.argsort(-np.array(scores), axis=1)[:, : embeddings.TOP]
    np.testing.assert_array_equal(embeddings.exact_top(vectors, doclens, queries), wanted)


@pytest.mark.usefixtures("modules")
def test_spliced_passages_are_spans_of_real_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import embeddings

    monkeypatch.setattr(embeddings, "NOISE", 0.0)
    monkeypatch.setattr(embeddings, "SPLICED_AT_ONCE", 7)
    rng = np.random.default_rng(3)
    source = tmp_path / "emb" / "medium"
    source.mkdir(parents=True)
    doclens = rng.integers(4, 40, size=30).astype(np.int32)
    real = unit(rng.standard_normal((doclens.sum(), DIM))).astype(np.float16)
    np.save(source / "embeddings.npy", real)
    np.save(source / "doclens.npy", doclens)
    np.save(source / "queries.npy", unit(rng.standard_normal((3, 32, DIM))).astype(np.float32))
    embeddings.make_spliced(tmp_path, "large", 50)
    large = tmp_path / "emb" / "large"
    lengths, rows = np.load(large / "doclens.npy"), np.load(large / "embeddings.npy")
    assert len(lengths) == 50
    assert lengths.sum() == len(rows)
    cosines = rows.astype(np.float32) @ real.T.astype(np.float32)
    nearest = cosines.argmax(1)
    assert cosines.max(1).min() > 0.999
    for places in np.split(nearest, np.cumsum(lengths)[:-1]):
        assert (np.diff(places) != 1).sum() <= 1  # two runs


@pytest.mark.usefixtures("modules")
def test_ratios_are_those_of_our_fastest_point_as_good() -> None:
    import report

    def row(library: str, p50: float, recall10: float, recall100: float) -> dict[str, object]:
        return {
            "library": library, "nbits": 4, "point": f"{p50}", "p50_ms": p50, "p95_ms": p50,
            "qps": 1000 / p50, "recall10": recall10, "recall100": recall100,
            "batch_recall10": recall10, "batch_recall100": recall100,
        }  # fmt: skip

    ours = [row(report.OURS, 1, 0.9, 0.7), row(report.OURS, 2, 0.9, 0.8), row(report.OURS, 4, 1, 1)]
    assert report.our_answer(ours, row("peer", 80, 0.9, 0.75)) == [
        "2",
        "2 / 2",
        "40x",
        "500",
        "40x",
    ]
    assert report.our_answer(ours[:2], row("peer", 80, 0.95, 0.5))[0] == "none as good"


def test_build_search_report(tmp_path: Path) -> None:
    folder = tmp_path / "emb" / "tiny"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(2)
    doclens = np.full(N_DOCS, 12, np.int32)
    vectors = unit(rng.standard_normal((doclens.sum(), DIM))).astype(np.float16)
    chosen = rng.integers(len(vectors), size=(N_QUERIES, 32))
    np.save(folder / "embeddings.npy", vectors)
    np.save(folder / "doclens.npy", doclens)
    np.save(folder / "queries.npy", vectors[chosen].astype(np.float32))
    np.save(folder / "gt_ids.npy", np.zeros((N_QUERIES, 100), np.int32))

    def script(*arguments: object) -> str:
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=PEERS, capture_output=True, text=True, check=True).stdout

    common = ("--data", tmp_path, "--environments", tmp_path, "--size", "tiny")
    common += ("--indexes", "colbert-fast@4", "--threads", 1)
    script("run.py", "build", *common)
    script("run.py", "search", *common, "--queries", N_QUERIES, "--batch", N_QUERIES, "--block", 3)
    results = tmp_path / "results"
    (built,) = map(json.loads, (results / "build.jsonl").read_text().splitlines())
    assert built["cpu_seconds"] > 0
    assert built["peak_mb"] > built["imported_mb"] > 0
    points = [json.loads(line) for line in (results / "search.jsonl").read_text().splitlines()]
    assert all(p["queries"] == p["batch_queries"] == N_QUERIES and p["cycles"] == 3 for p in points)
    assert all(0 < p["p50_ms"] <= p["p95_ms"] for p in points)
    assert {p["point"] for p in points} >= {"default", "mode=plaid", "exhaustive"}
    assert "exhaustive" in script("report.py", tmp_path)
