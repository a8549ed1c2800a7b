"""The writer's lock: one process or thread at a time changes an index."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from colbert_fast.errors import IndexBusyError

__all__ = ["LOCK", "writer_lock"]

LOCK = "writer.lock"
_PAUSE = 0.05  # seconds between attempts


@contextlib.contextmanager
def writer_lock(folder: Path, timeout: float = 0.0) -> Iterator[None]:
    """Hold the lock of the index in `folder`; the system releases it when the process dies.

    The file stays behind: whoever removed it would let two writers hold two of that name.

    Parameters
    ----------
    folder
        Where the lock file is, or is made.
    timeout
        Seconds to wait for another writer.

    Raises
    ------
    IndexBusyError
        Another writer has the lock still.
    """
    path = folder / LOCK
    deadline = time.monotonic() + timeout
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise IndexBusyError(
                    f"{str(folder)!r} is being written to by another process or thread; wait for "
                    "it with timeout=, in seconds"
                )
            time.sleep(_PAUSE)
        yield
    finally:
        os.close(descriptor)


# Both kinds of lock belong to the open file, so that two threads exclude each other as well.
if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
