"""What changes of a large index cost: a million documents made of real vectors and noise.

    python bench_updates.py DATA FOLDER --documents 1000000

DATA has the collection `medium` of peers/README.md, FOLDER takes the index; remove it to measure
again. Wall-clock times; each time is the least of `ROUNDS`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from colbert_fast import Index
from colbert_fast.search.snapshot import Snapshot

ADDED, DELETED, QUERIES, ROUNDS = 1000, 1000, 100, 5
NOISE = 0.4  # length of the noise added to a unit vector

BUDGET = 0.2  # of the index, for the searches that are to hold less of it

SEARCHES = """
import sys, time
import numpy as np
from colbert_fast import Index
index = Index.open(sys.argv[1], memory_budget=int(sys.argv[4]) or None)
queries = np.load(sys.argv[2])[:int(sys.argv[3])].astype(np.float32)
start = time.process_time()
for query in queries:
    index.search(query, k=10)
print((time.process_time() - start) / len(queries))
with open("/proc/self/status") as status:
    print(*(line.split()[1] for line in status if line.startswith(("VmRSS", "VmHWM"))))
"""


def documents(source: Path, count: int, tokens: int, seed: int) -> Iterator[np.ndarray]:
    """Documents of so many vectors: a run of real ones, with noise of its own for each."""
    rng = np.random.default_rng(seed)
    real = np.load(source / "embeddings.npy", mmap_mode="r")
    noise = rng.standard_normal(1 << 22, np.float32) * np.float32(NOISE / real.shape[1] ** 0.5)
    size = tokens * real.shape[1]
    starts = rng.integers(len(real) - tokens, size=count)
    offsets = rng.integers(len(noise) - size, size=count)
    for start, offset in zip(starts.tolist(), offsets.tolist(), strict=True):
        added = noise[offset : offset + size].reshape(tokens, -1)
        yield real[start : start + tokens].astype(np.float32) + added


def best(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Least wall-clock seconds."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def open_and_close(path: Path) -> None:
    Index.open(path).close()


def measure(source: Path, path: Path, count: int, doclen: int) -> None:
    size = sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    index = Index.open(path)
    tokens = index.manifest.num_tokens
    print(f"{len(index)} documents, {tokens} tokens, {index.manifest.num_centroids} centroids")
    print(f"bytes/token, all included      {size / tokens:8.2f}")
    print(f"open, ms                       {best(lambda: open_and_close(path)) * 1e3:8.1f}")

    for budget in (0, int(BUDGET * size)):
        arguments = [str(path), str(source / "queries.npy"), str(QUERIES), str(budget)]
        run = subprocess.run(
            [sys.executable, "-c", SEARCHES, *arguments], check=True, capture_output=True, text=True
        )
        seconds, peak, rss = map(float, run.stdout.split())
        print(f"with memory_budget={budget / 1e6:.0f} MB" if budget else "without memory_budget")
        print(f"  RSS after {QUERIES} queries, % of index {102400 * rss / size:5.1f} "
              f"(peak {102400 * peak / size:.1f})")  # fmt: skip
        print(f"  CPU ms a query               {seconds * 1e3:8.1f}")

    fresh = list(documents(source, ADDED, doclen, seed=1))
    vectors = np.concatenate(fresh)
    codec = Snapshot.open(path).codec
    compress = best(lambda: codec.encode(vectors))
    added, deleted = [], []
    for turn in range(ROUNDS):
        ids = range(count + turn * ADDED, count + (turn + 1) * ADDED)
        added.append(best(lambda ids=ids: index.add(fresh, ids=ids, progress=False), 1))
        gone = np.arange(DELETED) * (count // DELETED) + turn
        deleted.append(best(lambda gone=gone: index.delete(gone.tolist()), 1))
    print(f"compress {ADDED} documents, ms     {compress * 1e3:8.1f}")
    print(
        f"add {ADDED} documents, ms          {min(added) * 1e3:8.1f} ({min(added) / compress:.2f}x)"
    )
    print(f"delete {DELETED} ids, ms            {min(deleted) * 1e3:8.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=20, help="of a document")
    parser.add_argument("--centroids", type=int)
    args = parser.parse_args()
    source, path = args.data / "medium", args.folder / f"updates-{args.documents}-{args.tokens}"
    if not path.exists():
        start = time.perf_counter()
        items = documents(source, args.documents, args.tokens, seed=0)
        Index.build(path, items, num_centroids=args.centroids, progress=False)
        print(f"built in {time.perf_counter() - start:.0f} s", flush=True)
    measure(source, path, args.documents, args.tokens)


if __name__ == "__main__":
    main()
