"""Checksums of a model: of its weights, and of what else its results depend on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["model_fingerprint", "settings_fingerprint"]

# What a configuration has and no result depends on; loading and saving change them.
_FREE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


def model_fingerprint(module: nn.Module) -> str:
    """16 hex digits (BLAKE2b, RFC 7693) of the shape, type and bytes of every weight."""
    digest = hashlib.blake2b(digest_size=8)
    for _, weight in sorted(module.state_dict().items()):
        # Tables of integers are no weights, and only some versions of transformers keep them.
        if weight.is_floating_point():
            digest.update(f"{tuple(weight.shape)}{weight.dtype}".encode())
            digest.update(_bytes(weight))
    return digest.hexdigest()


def settings_fingerprint(config: Any, tokenizer: Any, *others: object) -> str:
    """16 hex digits of a transformers configuration, its tokenizer, and the repr of what else.

    An index does not record it: it knows its model by `model_fingerprint` and `ModelConfig`.
    """
    settings = {} if config is None else config.to_dict()
    kept = {key: value for key, value in settings.items() if key not in _FREE}
    text = json.dumps([kept, _tokenizer_text(tokenizer), repr(others)], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _tokenizer_text(tokenizer: Any) -> str:
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        return repr(tokenizer)
    state = json.loads(fast.to_str())
    del state["padding"], state["truncation"]  # those of the last call
    return json.dumps(state)


def _bytes(weight: Tensor) -> memoryview:
    # As bytes, since numpy has no bfloat16.
    flat = weight.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
