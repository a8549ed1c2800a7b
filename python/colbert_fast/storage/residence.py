"""How much of its mapped files a process holds: what a search has read stays mapped after it."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy.typing as npt

from colbert_fast.errors import BackendUnavailable

__all__ = ["Residence"]

_STATM = Path("/proc/self/statm")


class Residence:
    """Lets go of mapped pages where a process holds more than `budget` bytes of files.

    They stay in the system's cache while it has room for them: what is read again is mapped again,
    in about a microsecond for sixteen pages, not read again from the disk.

    Raises
    ------
    BackendUnavailable
        Not on Linux, which tells what is held and takes it back at once.
    """

    def __init__(self, budget: int) -> None:
        if not hasattr(mmap, "MADV_DONTNEED") or not _STATM.exists():
            raise BackendUnavailable("memory_budget works on Linux only; leave it out")
        self._budget = budget
        # Held after the last time: by libraries, other indexes, and whatever else is mapped.
        self._others = 0

    def trim(self, arrays: Iterable[npt.NDArray[Any]]) -> None:
        """Let go of the pages of mapped arrays, if too much is held; all can be read as before.

        Other threads may be reading them.
        """
        held = _held()
        self._others = min(self._others, held)
        if held - self._others <= self._budget:
            return
        for each in arrays:
            base: Any = each
            while base is not None and not isinstance(base, mmap.mmap):
                base = getattr(base, "base", None)
            with contextlib.suppress(OSError):  # locked in memory: the process wants to hold it
                if base is not None:
                    base.madvise(mmap.MADV_DONTNEED)
        self._others = _held()


def _held() -> int:
    """Bytes of files that are in this process's page tables."""
    return int(_STATM.read_bytes().split()[2]) * mmap.PAGESIZE
