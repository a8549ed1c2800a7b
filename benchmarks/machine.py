"""What a core of this machine does, measured: the rates that floors are computed from."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from baselines import limited_threads


class Machine(NamedTuple):
    """Operations and bytes a second of one core."""

    float32: float
    int8: float
    memory: float
    cache: float

    @classmethod
    @functools.cache
    def measure(cls) -> Machine:
        """Square matrix products of whichever is faster, torch or numpy; the largest of an array
        that fits the cache or does not. Once a process.
        """
        n = 1024
        a = torch.randn(n, n)
        b = torch.randint(-60, 60, (n, n), dtype=torch.int8)
        numpy_a = a.numpy()
        large, small = np.ones(1 << 25, np.int64), np.ones(1 << 15, np.int64)
        with limited_threads(1):
            return cls(
                2 * n**3 / min(best(lambda: a @ a), best(lambda: numpy_a @ numpy_a)),
                2 * n**3 / best(lambda: torch._int_mm(b, b)),
                large.nbytes / best(large.max),
                small.nbytes / best(small.max),
            )


def best(work: Callable[[], object], rounds: int = 15) -> float:
    """Least CPU seconds of this thread."""
    seconds = []
    for _ in range(rounds):
        start = time.thread_time()
        work()
        seconds.append(time.thread_time() - start)
    return min(seconds)
