"""Readers in threads and processes while a writer changes the index: only committed states."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import committed
from colbert_fast.reader import IndexReader

LONG = os.environ.get("COLBERT_FAST_LONG_TESTS") == "1"
SECONDS = 60.0 if LONG else 3.0
CHANGES = 10  # at least: on a crowded machine the few seconds hold hardly any
THREADS, PROCESSES = 8, 8 if LONG else 4  # a process takes half a second to start
Seen = set[tuple[int, frozenset[tuple[int, int]]]]
"""Generations with the documents found in them."""

KINDS = ("add", "upsert", "delete", "compact", "retrain")


def read(index: IndexReader, query: np.ndarray) -> tuple[int, frozenset[tuple[int, int]]]:
    """The generation seen and its documents, as one exhaustive search finds them."""
    hits = index.search(query, k=2 * committed.NUM_IDS, exhaustive=True)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    found = frozenset((hit.id, hit.metadata["version"]) for hit in hits)
    assert {hit.id for hit in index.search(query, k=5)} <= {key for key, _ in found}
    return index.manifest.generation, found


def read_until(
    path: Path, is_over: Callable[[], bool]
) -> set[tuple[int, frozenset[tuple[int, int]]]]:
    """Search, refreshing or opening anew each time."""
    seen, query, index = set(), committed.vectors(5), IndexReader.open(path)
    for turn in range(1 << 62):
        if turn % 3 == 0:
            index.close()
            index = IndexReader.open(path)
        else:
            index.refresh()
        seen.add(read(index, query))
        if is_over():
            break
    index.close()
    return seen


def main(path: Path, over: Path) -> None:
    seen = read_until(path, over.exists)
    json.dump([[generation, sorted(found)] for generation, found in seen], sys.stdout)


def test_readers_see_committed_states(tmp_path: Path) -> None:
    path, over = tmp_path / "a", tmp_path / "over"
    state: dict[int, int] = committed.first_state()
    index = committed.build(path, state)
    states = {1: frozenset(state.items())}
    children = [
        subprocess.Popen(
            [sys.executable, __file__, str(path), str(over)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(PROCESSES)
    ]
    seen: list[Seen] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            seen.append(read_until(path, over.exists))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    rng, end = np.random.default_rng(0), time.monotonic() + SECONDS
    try:
        while time.monotonic() < end or len(states) < CHANGES:
            change = committed.random_change(rng, state, KINDS)
            committed.apply(index, change)
            state = committed.after(state, change)
            states[index.manifest.generation] = frozenset(state.items())
    finally:
        over.touch()
    for thread in threads:
        thread.join()
    assert not errors, errors
    for child in children:
        output, _ = child.communicate()
        assert child.returncode == 0
        seen.append(
            {(number, frozenset(map(tuple, pairs))) for number, pairs in json.loads(output)}
        )
    assert len(seen) == THREADS + PROCESSES
    for each in seen:
        assert each
        for generation, found in each:
            assert found == states[generation], generation
    assert len({generation for each in seen for generation, _ in each}) > 1
    committed.check(path, [state])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
