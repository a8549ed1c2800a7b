"""What is running: instruction set, threads, versions."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

from colbert_fast import _core
from colbert_fast._version import __version__

__all__ = ["backend_info", "get_num_threads", "set_num_threads"]


def get_num_threads() -> int:
    """Threads that kernels use: the CPUs this process may run on, or COLBERT_FAST_NUM_THREADS."""
    return _core.get_num_threads()


def set_num_threads(n: int) -> None:
    """Use `n` threads from the next call on. Results do not depend on it.

    Raises
    ------
    ValueError
        `n` is not from 1 to 4096.
    """
    _core.set_num_threads(n)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def backend_info() -> dict[str, Any]:
    """What this installation runs on.

    Returns
    -------
    dict
        ``version``, ``isa`` (the kernels in use; COLBERT_FAST_ISA forces one), ``available_isas``
        (best first), ``threads``, ``cuda`` (whether this build has CUDA kernels), ``compiler``,
        ``machine``, and the versions of ``python``, ``numpy``, ``torch`` and ``transformers``
        (None: not installed).
    """
    return {
        "version": __version__,
        "isa": _core.isa(),
        "available_isas": _core.available_isas(),
        "threads": _core.get_num_threads(),
        "cuda": False,
        "compiler": _core.compiler,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
    }
