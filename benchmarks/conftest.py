"""What the benchmarks share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from baselines import limited_threads


@pytest.fixture(params=[1, os.cpu_count() or 1], ids=["1thread", "allthreads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Ours, torch and numpy on one thread and on all."""
    with limited_threads(request.param):
        yield request.param
