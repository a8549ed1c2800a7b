"""A checksum of all that decides a model's document embeddings."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from colbert_fast.model.config import ModelConfig

__all__ = ["model_fingerprint"]

# An index holds documents: how queries are laid out may be chosen anew for every search.
DOCUMENT_FIELDS = ("dim", "document_length", "document_prefix", "document_prompt", "skiplist_words")


def model_fingerprint(config: ModelConfig, module: nn.Module) -> str:
    """16 hex digits (BLAKE2b, RFC 7693) of the document settings and the bytes of every weight."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(repr([getattr(config, field) for field in DOCUMENT_FIELDS]).encode())
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
