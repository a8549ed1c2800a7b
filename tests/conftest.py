"""Fixtures for every test: which instruction set and how many threads the kernels run with."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from colbert_fast import _core
from support import use_isa, use_threads


@pytest.fixture(params=_core.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once on every instruction set that this CPU has."""
    with use_isa(request.param):
        yield request.param


@pytest.fixture(params=[1, 3], ids=["1thread", "3threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run the test on one thread and on several (more than there are cores is as good a test)."""
    with use_threads(request.param):
        yield request.param


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the test's name and parameters only."""
    return np.random.default_rng(list(request.node.name.encode()))
