"""Make every step-th write-like call of one change fail in turn, and check the index after each.

    LD_PRELOAD=failing_calls.so python every_call.py FOLDER CHANGE FAULT STEP

Prints how many calls the change makes and how often it was refused.
"""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np

import committed
from colbert_fast import Index
from colbert_fast.errors import IndexFormatError
from colbert_fast.kernels import backend

FAULTS = {"EIO": 0, "ENOSPC": 1, "short": 2}


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
    number, calls, refused = 0, 1, 0
    while number <= calls:
        for each in (path, home / "a.building"):
            shutil.rmtree(each, ignore_errors=True)
        shutil.copytree(origin, path)
        changed = Index.open(path)
        library.faults_arm(str(path).encode(), number, FAULTS[fault])
        states = [committed.after(state, change)]
        try:
            committed.apply(changed, change)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ENOSPC):
                raise
            refused += 1
            states.append(state)
        finally:
            made = library.faults_disarm()
        calls = made if number == 0 else calls
        try:
            found = committed.check(path, states)
            committed.check_goes_on(path, found)
        except (AssertionError, OSError, IndexFormatError) as error:
            raise AssertionError(f"after call {number} of {calls}: {error!r}") from error
        number += step if number else 1
    print(json.dumps({"calls": calls, "refused": refused}))


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    backend.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
