"""Workers as the driver sees them, and what they cost the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from adapters import LIBRARIES

HERE = Path(__file__).parent
THREAD_SETTINGS = (
    "COLBERT_FAST_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
# Settings that force one kernel or cache size of OpenBLAS on a machine that it may not suit.
FORCED_SETTINGS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


class WorkerError(RuntimeError):
    """A worker ended without a reply; what it had to say is on stderr."""


def python_of(environment: str, environments: Path) -> str:
    """The interpreter of an environment; our own one's is the driver's."""
    if environment == "colbert-fast":
        return sys.executable
    return str(environments / environment / "bin" / "python")


def worker_variables(threads: int) -> dict[str, str]:
    variables = {name: value for name, value in os.environ.items() if name not in FORCED_SETTINGS}
    variables |= dict.fromkeys(THREAD_SETTINGS, str(threads))
    return variables | {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}


class WorkerProcess:
    """One library and one index; `ask` sends a request and waits for the reply."""

    def __init__(
        self,
        library: str,
        *,
        environments: Path,
        inputs: Path,
        index: Path,
        nbits: int,
        threads: int,
        core: int | None,
    ) -> None:
        python = python_of(LIBRARIES[library].environment, environments)
        command = [python, str(HERE / "worker.py"), library]
        command += ["--inputs", str(inputs.absolute()), "--index", str(index.absolute())]
        command += ["--nbits", str(nbits), "--threads", str(threads)]
        if core is not None:
            command += ["--core", str(core)]
        self.library, self.nbits, self.index = library, nbits, index
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=worker_variables(threads),
            text=True,
        )

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.library}: no reply to {do!r} (exit {self.process.wait()})")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class MemoryPeak(threading.Thread):
    """Samples the anonymous memory of a process, in bytes.

    Pages of mapped files (here the inputs) are left out: the system takes them back when it needs
    the memory.
    """

    PERIOD = 0.02  # seconds

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process, self.peak, self.stopped = psutil.Process(pid), 0, threading.Event()

    def sample(self) -> int:
        memory = self.process.memory_info()
        return memory.rss - memory.shared

    def run(self) -> None:
        while not self.stopped.wait(self.PERIOD):
            self.peak = max(self.peak, self.sample())

    def stop(self) -> int:
        self.stopped.set()
        self.join()
        return self.peak


class Neighbours:
    """Cores kept busy by other processes since this was made: the noise of a figure."""

    def __init__(self, pid: int) -> None:
        self.process = psutil.Process(pid)
        self.before = self.read()

    def read(self) -> tuple[float, float, float]:
        times = psutil.cpu_times()
        busy = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
        own = sum(self.process.cpu_times()[:4])
        return busy, own, time.perf_counter()

    def cores(self) -> float:
        busy, own, wall = (b - a for a, b in zip(self.before, self.read(), strict=True))
        return max(0.0, busy - own) / wall
