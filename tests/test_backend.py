"""What is running: instruction sets, threads, and how they are chosen."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from colbert_fast import _core
from colbert_fast.kernels import backend, ops
from support import DOCLENS, same_bits, unit_vectors, use_threads

AVAILABLE = _core.available_isas()


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


WHICH = """
import numpy as np
from colbert_fast.kernels import backend, ops
ops.maxsim(np.ones((1, 8), np.float32), np.ones((2, 8), np.float32), np.array([2], np.int32))
print(backend.backend_info()["isa"])
"""


def test_info_says_what_is_running() -> None:
    info = backend.backend_info()
    wanted = "version isa available_isas threads cuda python numpy torch compiler"
    assert set(wanted.split()) <= set(info)
    assert info["isa"] in info["available_isas"] == AVAILABLE
    assert info["threads"] == backend.get_num_threads() >= 1
    assert info["numpy"] == np.__version__


def test_scalar_is_everywhere() -> None:
    assert "scalar" in AVAILABLE
    assert len(set(AVAILABLE)) == len(AVAILABLE)


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(), reason="reads cpuinfo"
)
def test_what_the_processor_has_is_used() -> None:
    flags = re.search(r"^flags\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    assert flags is not None
    has = set(flags[1].split())
    wanted = ["scalar"]
    if {"avx2", "fma", "f16c"} <= has:
        wanted.insert(0, "avx2")
    if {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"} <= has:
        wanted.insert(0, "avx512")
    assert wanted == AVAILABLE
    assert run_python(WHICH, COLBERT_FAST_ISA="").stdout.split() == wanted[:1]


THREADS = "from colbert_fast.kernels import backend; print(backend.get_num_threads())"


def test_the_environment_sets_threads() -> None:
    assert run_python(THREADS, COLBERT_FAST_NUM_THREADS="3").stdout == "3\n"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert run_python(THREADS, COLBERT_FAST_NUM_THREADS="").stdout == f"{cores}\n"
    for wrong in ("0", "two", "1.5"):
        result = run_python(THREADS, COLBERT_FAST_NUM_THREADS=wrong)
        assert result.returncode != 0
        assert f"must be a number from 1 to 4096, got '{wrong}'" in result.stderr


@pytest.mark.parametrize("name", AVAILABLE)
def test_the_environment_forces_an_isa(name: str) -> None:
    result = run_python(WHICH, COLBERT_FAST_ISA=name)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [name]


def test_an_unknown_isa_is_an_error_that_lists_the_choices() -> None:
    result = run_python(WHICH, COLBERT_FAST_ISA="nonsense")
    assert result.returncode != 0
    assert result.stdout == ""
    last = result.stderr.strip().splitlines()[-1]
    assert "nonsense" in last
    assert all(name in last for name in AVAILABLE)


def test_set_isa_takes_and_refuses() -> None:
    before = backend.backend_info()["isa"]
    for name in AVAILABLE:
        _core.set_isa(name)
        assert backend.backend_info()["isa"] == name
    _core.set_isa(before)
    with pytest.raises((RuntimeError, ValueError), match="nonsense"):
        _core.set_isa("nonsense")
    assert backend.backend_info()["isa"] == before


def test_number_of_threads() -> None:
    with use_threads(3):
        assert backend.get_num_threads() == 3
        for wrong in (0, -1):
            with pytest.raises(ValueError, match=str(wrong)):
                backend.set_num_threads(wrong)
        assert backend.get_num_threads() == 3


def test_python_threads_may_call_at_once(rng: np.random.Generator) -> None:
    query, documents = unit_vectors(rng, 9, 32), unit_vectors(rng, DOCLENS.sum(), 32)
    expected = ops.maxsim(query, documents, DOCLENS)
    results: list[np.ndarray] = []

    def work() -> None:
        results.extend(ops.maxsim(query, documents, DOCLENS) for _ in range(25))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert len(results) == 100
    assert all(same_bits(result, expected) for result in results)


FORK = """
import os, warnings
import numpy as np
from colbert_fast.kernels import backend, ops
warnings.simplefilter("ignore")  # Python 3.12 warns of any fork beside threads
backend.set_num_threads(3)
def scores():
    documents = np.ones((4000, 8), np.float32)
    return ops.maxsim(documents[:3], documents, np.full(1000, 4, np.int32))
before = scores()
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(scores(), before) else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_kernels_work_in_a_forked_child() -> None:
    # Data loaders fork; a child has none of its parent's worker threads.
    result = run_python(FORK)
    assert result.stdout.split() == ["0"], result.stderr
