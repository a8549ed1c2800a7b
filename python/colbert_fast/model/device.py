"""Which device and which arithmetic the encoder runs on."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from colbert_fast.errors import BackendUnavailable

__all__ = ["DType", "check_device", "resolve_dtype"]

logger = logging.getLogger(__name__)

DType = Literal["auto", "float32", "bfloat16"]


def check_device(device: str) -> torch.device:
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: {str(error).splitlines()[0]}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(f"device: got {device!r}, but torch sees no CUDA device")
    return chosen


def resolve_dtype(dtype: DType, device: torch.device) -> Literal["float32", "bfloat16"]:
    if dtype not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"dtype: want 'auto', 'float32' or 'bfloat16', got {dtype!r}")
    if dtype != "auto":
        return dtype
    chosen: Literal["float32", "bfloat16"] = (
        "bfloat16" if _multiplies_bfloat16(device) else "float32"
    )
    logger.info("encoding in %s on %s", chosen, device)
    return chosen


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are in hardware; emulated ones are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    flags = torch.cpu.get_capabilities()
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16"))
