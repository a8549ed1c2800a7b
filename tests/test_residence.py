"""What a process goes on holding of the files it has mapped."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colbert_fast import BackendUnavailable, Index, ShardedIndex
from colbert_fast.storage import residence

SMAPS = Path("/proc/self/smaps")
linux = pytest.mark.skipif(not SMAPS.exists(), reason="only Linux tells what is held of a file")
DOCLEN, DOCUMENTS, DIM = 64, 1_000, 128
BUDGET = 1 << 20


@pytest.fixture(scope="module", params=["default", "plaid", "float16"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two segments."""
    rows = np.random.default_rng(0).standard_normal((DOCUMENTS, DOCLEN, DIM), np.float32)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    folder = tmp_path_factory.mktemp("residence") / "index"
    with Index.build(
        folder, rows[:-100], codec=request.param, num_centroids=256, progress=False
    ) as index:
        index.add(rows[-100:], progress=False)
    return folder


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    rows = np.random.default_rng(1).standard_normal((20, 32, DIM), np.float32)
    return rows / np.linalg.norm(rows, axis=2, keepdims=True)


def found(index: Index | ShardedIndex, query: np.ndarray) -> list[tuple[object, float]]:
    return [(hit.id, hit.score) for hit in index.search(query, k=10, exhaustive=True)]


def held(folder: Path) -> int:
    """Bytes of the large files in `folder` that are in this process's page tables."""
    total, counts = 0, False
    for line in SMAPS.read_text().splitlines():
        if line[0] in "0123456789abcdef":
            counts = str(folder) in line and not line.endswith(("doclens.npy", ".sqlite"))
        elif counts and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


@linux
def test_pages_are_held_until_the_budget_is_passed(path: Path, queries: np.ndarray) -> None:
    with Index.open(path) as free:
        wanted = [found(free, query) for query in queries]
        assert held(path) > DOCUMENTS * DOCLEN * DIM * 2 // 8
    with Index.open(path, memory_budget=1 << 40) as roomy:
        found(roomy, queries[0])
        assert held(path) > DOCUMENTS * DOCLEN * DIM * 2 // 8
    with Index.open(path, memory_budget=BUDGET) as bounded:
        assert found(bounded, queries[0]) == wanted[0]
        assert held(path) < BUDGET // 4  # lists' counts and offsets
        for query, hits in zip(queries, wanted, strict=True):
            assert found(bounded, query) == hits


@linux
def test_threads_and_a_new_generation(path: Path, queries: np.ndarray) -> None:
    with Index.open(path) as free:
        wanted = [found(free, query) for query in queries]
    with Index.open(path, memory_budget=1) as bounded, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda query: found(bounded, query), queries)) == wanted
        with Index.open(path) as writer:
            writer.add([queries[0]], ids=["new"], progress=False)
            assert bounded.refresh()
            assert found(bounded, queries[0])[0][0] == "new"
            writer.delete(["new"])
        found(bounded, queries[0])
        assert held(path) < BUDGET // 4


@linux
def test_shards_share_a_budget(path: Path, queries: np.ndarray) -> None:
    with ShardedIndex([path, path]) as free:
        wanted = found(free, queries[0])
    with ShardedIndex([path, path], memory_budget=BUDGET) as bounded:
        assert found(bounded, queries[0]) == wanted
        assert held(path) < BUDGET // 2
    with pytest.raises(ValueError, match="a byte for each of 2 indexes, got 1"):
        ShardedIndex([path, path], memory_budget=1)


@linux
def test_when_pages_are_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries and other indexes do not make every search let go of all that it has read."""
    counts = iter([90, 170, 80, 175, 30, 135, 60])
    monkeypatch.setattr(residence, "_held", lambda: next(counts))
    bounded = residence.Residence(100)
    trimmed: list[Any] = []

    def arrays() -> Iterator[Any]:
        trimmed.append(None)
        yield np.zeros(3)  # no map: passed over

    # 170 leave 80 that are not its own, to which 95 come; others let go of theirs, and 30 are left.
    for wanted in (0, 1, 1, 1, 2):
        bounded.trim(arrays())
        assert len(trimmed) == wanted
    assert next(counts, None) is None


@pytest.mark.parametrize(("budget", "error"), [(0, ValueError), (1.5, TypeError), ("1", TypeError)])
def test_a_budget_that_is_none(path: Path, budget: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="memory_budget"):
        Index.open(path, memory_budget=budget)


def test_systems_that_cannot(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_DONTNEED", raising=False)
    with pytest.raises(BackendUnavailable, match="Linux only"):
        Index.open(path, memory_budget=BUDGET)
