"""Which device and which arithmetic the encoder runs on."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from colbert_fast.errors import BackendUnavailable

__all__ = [
    "Backend",
    "DType",
    "check_backend",
    "check_device",
    "multiplies_bfloat16",
    "resolve_dtype",
]

logger = logging.getLogger(__name__)

Backend = Literal["torch", "openvino"]
DType = Literal["auto", "float32", "bfloat16", "int8"]


def check_device(device: str) -> torch.device:
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: {str(error).splitlines()[0]}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(f"device: got {device!r}, but torch sees no CUDA device")
    return chosen


def check_backend(backend: Backend, device: torch.device) -> Backend:
    if backend not in ("torch", "openvino"):
        raise ValueError(f"backend: want 'torch' or 'openvino', got {backend!r}")
    if backend == "openvino" and device.type != "cpu":
        raise ValueError(f"device: backend='openvino' runs on 'cpu', got '{device}'")
    return backend


def resolve_dtype(
    dtype: DType, device: torch.device, backend: Backend = "torch"
) -> Literal["float32", "bfloat16", "int8"]:
    wanted = ("auto", "float32", "bfloat16") + (("int8",) if backend == "openvino" else ())
    if dtype not in wanted:
        raise ValueError(f"dtype: want {' or '.join(map(repr, wanted))}, got {dtype!r}")
    if dtype != "auto":
        return dtype
    chosen: Literal["float32", "bfloat16", "int8"] = (
        "int8"
        if backend == "openvino"
        else "bfloat16"
        if multiplies_bfloat16(device)
        else "float32"
    )
    logger.info("encoding in %s on %s", chosen, device)
    return chosen


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are in hardware; emulated ones are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    flags = torch.cpu.get_capabilities()
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16"))
