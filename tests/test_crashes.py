"""Killed at any moment, or refused by the disk at any call, an index is in a committed state."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import committed
from colbert_fast import Index

HERE = Path(__file__).parent
LONG = os.environ.get("COLBERT_FAST_LONG_TESTS") == "1"
KILLS = 200 if LONG else 8


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_killed_at_random_moments(tmp_path: Path) -> None:
    path, log = tmp_path / "a", tmp_path / "log"
    state = committed.first_state()
    committed.build(path, state)
    rng = np.random.default_rng(0)
    interrupted = 0
    for turn in range(KILLS):
        log.unlink(missing_ok=True)
        arguments = [str(HERE / "committed.py"), str(path), str(turn), str(log)]
        with subprocess.Popen([sys.executable, *arguments]) as child:
            while not log.exists() and child.poll() is None:
                time.sleep(0.005)
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(rng.uniform(0, 0.5))
            child.kill()
        states = [state]
        for change in committed.logged(log):
            states.append(committed.after(states[-1], change))
        interrupted += len(states) > 1
        state = committed.check(path, states[-2:])
        committed.check_goes_on(path, state)
        state = {**state, 0: 5}
    assert interrupted > KILLS // 2
    committed.build(path, state, overwrite=True)
    assert {each.name for each in tmp_path.iterdir()} == {"a", "log"}


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes calls fail, compiled."""
    compiler = shutil.which("cc")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("faults") / "failing_calls.so"
    source = HERE / "faults" / "failing_calls.c"
    command = [compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", str(library), str(source), "-ldl"], check=True)
    return library


@pytest.mark.parametrize("kind", ["EIO", "ENOSPC", "short", "killed"])
@pytest.mark.parametrize("change", committed.KINDS)
def test_a_fault_at_every_call(tmp_path: Path, shim: Path, change: str, kind: str) -> None:
    step = 1 if LONG else 11
    arguments = [str(HERE / "faults" / "every_call.py"), str(tmp_path), change, kind, str(step)]
    environment = {**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": str(HERE)}
    run = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["calls"] > 10
    if kind == "short":
        assert report["failures"] == 0
    elif kind == "killed":
        assert report["failures"] == len(range(1, report["calls"] + 1, step))
    else:
        assert report["failures"] > 0


def test_every_kind_of_change_is_made(tmp_path: Path) -> None:
    committed.build(tmp_path / "a", committed.first_state())
    index, rng = Index.open(tmp_path / "a"), np.random.default_rng(3)
    state: dict[int, int] = committed.first_state()
    for kind in committed.KINDS:
        change = committed.random_change(rng, state, [kind])
        committed.apply(index, change)
        state = committed.check(tmp_path / "a", [committed.after(state, change)])
