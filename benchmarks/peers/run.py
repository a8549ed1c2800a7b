"""Build indexes with every library, and search them in turns; see README.md.

    run.py build  --data DATA --environments ENVS --size small --indexes colbert-ai@4 fast-plaid@4
    run.py search --data DATA --environments ENVS --size small --indexes colbert-fast@4 ...

Every figure becomes a line in DATA/results/*.jsonl; report.py makes tables of them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from adapters import LIBRARIES
from inputs import Inputs, read_inputs, recall
from processes import MemoryPeak, Neighbours, WorkerProcess

SEED = 2112
PAUSE = 0.05  # seconds before each turn, in which threads of the turn before stop spinning


class Setup:
    """Where things are; what an index is called: library@nbits."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.data: Path = options.data
        self.environments: Path = options.environments
        self.size: str = options.size
        self.started = datetime.datetime.now().isoformat(timespec="seconds")

    @property
    def inputs(self) -> Path:
        return self.data / "emb" / self.size

    def start(self, name: str, threads: int) -> WorkerProcess:
        library, nbits = name.split("@")
        return WorkerProcess(
            library,
            environments=self.environments,
            inputs=self.inputs,
            index=self.data / "idx" / self.size / name,
            nbits=int(nbits),
            threads=threads,
            core=max(os.sched_getaffinity(0)) if threads == 1 else None,
        )

    def write(self, kind: str, rows: list[dict[str, Any]]) -> None:
        folder = self.data / "results"
        folder.mkdir(exist_ok=True)
        common = {"size": self.size, "started": self.started}
        with (folder / f"{kind}.jsonl").open("a") as file:
            for row in rows:
                file.write(json.dumps(common | row) + "\n")


def bytes_per_token(setup: Setup, index: Path) -> float:
    """Of all files of an index."""
    size = sum(file.stat().st_size for file in index.rglob("*") if file.is_file())
    return round(size / int(np.load(setup.inputs / "doclens.npy").sum()), 2)


def build(setup: Setup, name: str, threads: int) -> dict[str, Any]:
    """Build one index anew in a process of its own."""
    worker = setup.start(name, threads)
    shutil.rmtree(worker.index, ignore_errors=True)
    worker.index.parent.mkdir(parents=True, exist_ok=True)
    versions = worker.ask("imports")["versions"]
    neighbours = Neighbours(worker.process.pid)
    memory = MemoryPeak(worker.process.pid)
    before = memory.sample()
    memory.start()
    took = worker.ask("build")
    peak = memory.stop()
    others = neighbours.cores()
    worker.close()
    return {
        "library": worker.library,
        "nbits": worker.nbits,
        "threads": threads,
        "seconds": round(took["seconds"], 2),
        "cpu_seconds": round(took["cpu_seconds"], 2),
        "peak_mb": round(peak / 1e6),
        "imported_mb": round(before / 1e6),
        "bytes_per_token": bytes_per_token(setup, worker.index),
        "others_cores": round(others, 2),
        "versions": versions,
    }


class Contestant:
    """One index at one operating point, and what was measured of it."""

    def __init__(self, worker: WorkerProcess, label: str) -> None:
        self.worker, self.label = worker, label
        self.point = dict(LIBRARIES[worker.library].points[label])
        self.spent = 0.0
        self.latencies: list[list[float]] = [[]]  # by cycle, by query
        self.found: list[list[int]] = []
        self.batch_seconds: list[float] = []
        self.batch_found: list[list[int]] = []
        self.others: list[float] = []

    def search(self, cycle: int, first: int, count: int) -> None:
        neighbours = Neighbours(self.worker.process.pid)
        reply = self.worker.ask("search", point=self.point, first=first, count=count, warm=2)
        self.others.append(neighbours.cores())
        if first == 0 and cycle:
            self.latencies.append([])
        self.latencies[-1] += reply["seconds"]
        self.spent += sum(reply["seconds"])
        if not cycle:
            self.found += reply["found"]

    def search_batch(self, count: int) -> None:
        reply = self.worker.ask("search_batch", point=self.point, count=count)
        self.batch_seconds.append(reply["seconds"])
        self.batch_found = reply["found"]

    def row(self, truth: np.ndarray) -> dict[str, Any]:
        """Latencies are over the queries, each the median of its cycles."""
        milliseconds = np.median(self.latencies, axis=0) * 1e3
        batch_truth = truth[: len(self.batch_found)]
        truth = truth[: len(self.found)]
        return {
            "library": self.worker.library,
            "nbits": self.worker.nbits,
            "point": self.label,
            "p50_ms": round(float(np.percentile(milliseconds, 50)), 4),
            "p95_ms": round(float(np.percentile(milliseconds, 95)), 4),
            "recall10": round(recall(self.found, truth, 10), 4),
            "recall100": round(recall(self.found, truth, 100), 4),
            "qps": round(len(self.batch_found) / float(np.median(self.batch_seconds)), 2),
            "batch_recall10": round(recall(self.batch_found, batch_truth, 10), 4),
            "batch_recall100": round(recall(self.batch_found, batch_truth, 100), 4),
            "cycles": len(self.latencies),
            "queries": len(self.found),
            "batch_cycles": len(self.batch_seconds),
            "batch_queries": len(self.batch_found),
            "others_cores": round(float(np.median(self.others)), 2),
        }


def take_turns(contestants: list[Contestant], options: argparse.Namespace) -> None:
    """Go round block of queries by block, so that noise of the machine hits all alike.

    Everybody does the first cycle; who has spent the budget then leaves the others out.
    """
    shuffled = random.Random(SEED)
    for cycle in range(options.cycles):
        runners = [c for c in contestants if not cycle or c.spent < options.budget]
        for first in range(0, options.queries, options.block):
            shuffled.shuffle(runners)
            for contestant in runners:
                time.sleep(PAUSE)
                contestant.search(cycle, first, min(options.block, options.queries - first))
        print(f"cycle {cycle + 1}: {len(runners)} of {len(contestants)} took part", flush=True)
    for cycle in range(options.cycles):
        runners = [c for c in contestants if not cycle or sum(c.batch_seconds) < options.budget]
        shuffled.shuffle(runners)
        for contestant in runners:
            time.sleep(PAUSE)
            contestant.search_batch(options.batch)


def search(setup: Setup, options: argparse.Namespace, inputs: Inputs, threads: int) -> None:
    workers, opened = [], {}
    for name in options.indexes:
        worker = setup.start(name, threads)
        workers.append(worker)
        versions = worker.ask("imports")["versions"]
        before = MemoryPeak(worker.process.pid).sample()
        seconds = worker.ask("open")["seconds"]
        grown = MemoryPeak(worker.process.pid).sample() - before
        opened[worker] = {
            "threads": threads,
            "open_seconds": round(seconds, 3),
            "open_mb": round(grown / 1e6),
            "bytes_per_token": bytes_per_token(setup, worker.index),
            "versions": versions,
        }
        print(f"{name}: open after {seconds:.2f} s", flush=True)
    contestants = [
        Contestant(worker, label)
        for worker in workers
        for label in LIBRARIES[worker.library].points
        if options.points is None or label in options.points
    ]
    take_turns(contestants, options)
    for worker in workers:
        worker.close()
    setup.write("search", [opened[c.worker] | c.row(inputs.truth) for c in contestants])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["build", "search"])
    parser.add_argument("--data", type=Path, required=True, help="folder with emb/, idx/, results/")
    parser.add_argument("--environments", type=Path, required=True, help="folder of environments")
    parser.add_argument("--size", default="small", help="folder in emb/")
    parser.add_argument("--indexes", nargs="+", required=True, metavar="LIBRARY@NBITS")
    parser.add_argument(
        "--threads", type=int, nargs="+", help="default: 1 and all for searches, all for builds"
    )
    parser.add_argument("--points", nargs="+", help="only the operating points of these names")
    parser.add_argument("--queries", type=int, default=100, help="searched one by one")
    parser.add_argument("--batch", type=int, default=200, help="searched in one call")
    parser.add_argument("--block", type=int, default=10, help="queries of a turn")
    parser.add_argument("--cycles", type=int, default=3, help="times that everything is measured")
    parser.add_argument(
        "--budget", type=float, default=30, help="seconds after which a point takes no more cycles"
    )
    return parser.parse_args()


def main() -> None:
    options = parse()
    setup = Setup(options)
    cores = len(os.sched_getaffinity(0))
    if options.what == "build":
        for name in options.indexes:
            for threads in options.threads or [cores]:
                row = build(setup, name, threads)
                setup.write("build", [row])
                print(json.dumps(row), flush=True)
    else:
        inputs = read_inputs(setup.inputs)
        for threads in options.threads or sorted({1, cores}):
            search(setup, options, inputs, threads)


if __name__ == "__main__":
    main()
