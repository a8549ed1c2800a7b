"""A checksum of a model's weights."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

__all__ = ["model_fingerprint"]


def model_fingerprint(module: nn.Module) -> str:
    """16 hex digits (BLAKE2b, RFC 7693) of the shape, type and bytes of every weight."""
    digest = hashlib.blake2b(digest_size=8)
    for _, weight in sorted(module.state_dict().items()):
        # Tables of integers are no weights, and only some versions of transformers keep them.
        if weight.is_floating_point():
            digest.update(f"{tuple(weight.shape)}{weight.dtype}".encode())
            digest.update(_bytes(weight))
    return digest.hexdigest()


def _bytes(weight: Tensor) -> memoryview:
    # As bytes, since numpy has no bfloat16.
    flat = weight.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
