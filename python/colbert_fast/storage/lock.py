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
    deadline = time.monotonic() + timeout
    while True:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            while not _try_lock(descriptor):
                if time.monotonic() >= deadline:
                    raise IndexBusyError(
                        f"{str(folder)!r} is being written to by another process or thread; wait "
                        "for it with timeout=, in seconds"
                    )
                time.sleep(_PAUSE)
            if _is_at(descriptor, folder / LOCK):
                yield
                return
        finally:
            _unlock(descriptor)
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the file that was opened is still the one of that name: folders may be moved."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


# Both kinds of lock belong to the open file, so that two threads exclude each other as well.
if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        with contextlib.suppress(OSError):  # it may not have been locked
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        # Closing alone would leave the lock with a process that was forked in the meantime.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
