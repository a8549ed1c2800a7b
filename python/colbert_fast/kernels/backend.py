"""What is running: instruction set, threads, versions."""

from __future__ import annotations

import platform
from importlib import import_module, metadata, util
from typing import Any

from colbert_fast import _core
from colbert_fast._version import __version__
from colbert_fast.errors import BackendUnavailable

__all__ = ["backend_info", "cuda", "get_num_threads", "runs_on", "set_num_threads"]


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


def _cuda_module() -> Any:
    """The extension with the CUDA kernels; None if this build has none."""
    if util.find_spec("colbert_fast._cuda") is None:
        return None
    return import_module("colbert_fast._cuda")


def _gpus(module: Any) -> list[int]:
    """The numbers of the GPUs that can run the kernels of `_cuda`."""
    return [device for device in range(module.device_count()) if module.can_run(device)]


def runs_on(device: int) -> bool:
    """Whether the CUDA kernels of this build, if it has any, run on the GPU of this number."""
    module = _cuda_module()
    return module is not None and device in _gpus(module)


def cuda(device: int | None = None) -> Any:
    """The CUDA kernels, for the GPU of this number or for any.

    Raises
    ------
    BackendUnavailable
        This build has none, or that GPU or this machine could not run them.
    """
    module = _cuda_module()
    if module is None:
        raise BackendUnavailable(
            "this build of colbert_fast has no CUDA kernels: install it from source where nvcc is, "
            "with COLBERT_FAST_CUDA=ON, or move the tensors to the CPU"
        )
    if module.device_count() == 0:
        raise BackendUnavailable(
            f"CUDA {module.release} finds no GPU to run on ({module.problem()}): install or update "
            "NVIDIA's driver, look at CUDA_VISIBLE_DEVICES, or move the tensors to the CPU"
        )
    able = _gpus(module)
    if not able or (device is not None and device not in able):
        here = ", ".join(f"cuda:{each}" for each in able) or "none here"
        raise BackendUnavailable(
            "the CUDA kernels want a GPU of compute capability 8.0 (Ampere) or more, which "
            f"{here} has{'' if device is None else f', but not cuda:{device}'}"
        )
    return module


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
        (best first), ``threads``, ``cuda`` (the CUDA release that kernels were built with; None:
        this build has none), ``cuda_devices`` (the GPUs that can run them, as "cuda:N NAME"),
        ``compiler``, ``machine``, and the versions of ``python``, ``numpy``, ``torch`` and
        ``transformers`` (None: not installed).
    """
    module = _cuda_module()
    devices = [] if module is None else _gpus(module)
    return {
        "version": __version__,
        "isa": _core.isa(),
        "available_isas": _core.available_isas(),
        "threads": _core.get_num_threads(),
        "cuda": None if module is None else module.release,
        "cuda_devices": [f"cuda:{device} {module.device_name(device)}" for device in devices],
        "compiler": _core.compiler,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
    }
