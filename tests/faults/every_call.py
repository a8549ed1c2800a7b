"""Make every step-th write-like call of one change fail, or the last of its process, in turn.

    LD_PRELOAD=failing_calls.so python every_call.py FOLDER CHANGE FAULT STEP

The index is checked after each. Prints how many calls the change makes and how often it was refused
or killed.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import committed
from colbert_fast import Index
from colbert_fast.errors import IndexFormatError
from colbert_fast.kernels import backend

FAULTS = {"EIO": 0, "ENOSPC": 1, "short": 2, "killed": 3}


def is_killed(work: Callable[[], object]) -> bool:
    """Whether a child process that does `work` is killed in it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code != 0


def attempt(
    library: ctypes.CDLL, path: Path, change: committed.Change, number: int, fault: str
) -> tuple[int, bool]:
    """Make `change` with a fault at this call; how many calls there were and whether it failed."""
    index, failed = Index.open(path), False
    library.faults_arm(str(path).encode(), number, FAULTS[fault])
    try:
        committed.apply(index, change)
    except OSError as error:
        if error.errno not in (errno.EIO, errno.ENOSPC):
            raise
        failed = True
    finally:
        calls = library.faults_disarm()
    return calls, failed


def main(home: Path, kind: str, fault: str, step: int) -> None:
    library = ctypes.CDLL(None)
    library.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
    origin, path = home / "origin", home / "a"
    state = committed.first_state()
    index = committed.build(origin, state)
    index.delete([39])
    index.add(committed.documents({50: 50, 51: 51}), progress=False)
    state = committed.content(index)
    change = committed.random_change(np.random.default_rng(1), state, [kind])
    number, calls, failures = 0, 1, 0
    while number <= calls:
        for each in (path, home / "a.building"):
            shutil.rmtree(each, ignore_errors=True)
        shutil.copytree(origin, path)
        faulty = functools.partial(attempt, library, path, change, number, fault)
        if number == 0:  # none fails
            calls, failed = faulty()
        elif fault == "killed":
            failed = is_killed(faulty)
        else:
            failed = faulty()[1]
        failures += failed
        states = [committed.after(state, change), *([state] if failed else [])]
        try:
            found = committed.check(path, states)
            committed.check_goes_on(path, found)
        except (AssertionError, OSError, IndexFormatError) as error:
            raise AssertionError(f"after call {number} of {calls}: {error!r}") from error
        number += step if number else 1
    print(json.dumps({"calls": calls, "failures": failures}))


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    backend.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
