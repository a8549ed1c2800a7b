"""What the compiler made of the CUDA kernels: no GPU is needed to read it.

Skips where there is no `cuobjdump` (of a CUDA toolkit, or of PyPI's nvidia-cuda-cuobjdump and
nvidia-cuda-nvdisasm with their folder on PATH).
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

SPEC = importlib.util.find_spec("colbert_fast._cuda")
CUOBJDUMP = shutil.which("cuobjdump")
pytestmark = [
    pytest.mark.skipif(SPEC is None, reason="built without CUDA"),
    pytest.mark.skipif(CUOBJDUMP is None, reason="no cuobjdump"),
]

MMA = {
    "residual_maxsim_kernel": "IMMA",
    "byte_scores_kernel": "IMMA",
    "maxsim_mma_kernel": "HMMA",
    "assign_mma_kernel": "HMMA",
}
"""The instruction of the tensor cores that each of these kernels is made around."""

MAX_REGISTERS = 168
"""Of a thread: three blocks of 128 threads share a multiprocessor."""


def dump(*options: str) -> str:
    assert SPEC is not None
    command = [str(CUOBJDUMP), *options, str(SPEC.origin)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


def kernels(text: str, start: str) -> Iterator[tuple[str, str]]:
    """Name and text of each function, per architecture."""
    for part in re.split(rf"^\s*{start}\s*", text, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        yield name.rstrip(":"), body


def test_newer_gpus_get_ptx() -> None:
    assert "sm_90" in dump("--list-elf")
    assert "sm_90" in dump("--list-ptx")


def test_nothing_spills() -> None:
    found = list(kernels(dump("--dump-resource-usage"), "Function"))
    assert len(found) >= 30
    for name, usage in found:
        numbers = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", usage)}
        assert numbers["STACK"] == numbers["LOCAL"] == 0, f"{name}: {usage.strip()}"
        assert numbers["REG"] <= MAX_REGISTERS, f"{name}: {usage.strip()}"


def test_products_run_on_tensor_cores() -> None:
    seen = dict.fromkeys(MMA, 0)
    for name, code in kernels(dump("-sass"), "Function :"):
        for kernel, instruction in MMA.items():
            if kernel in name:
                seen[kernel] += 1
                assert instruction in code, name
                assert not re.search(r"\b(LDL|STL)\b", code), f"{name} uses local memory"
    assert all(seen.values()), seen
