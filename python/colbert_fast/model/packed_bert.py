"""BERT's forward pass with weights packed once for oneDNN and its elementwise work fused.

transformers converts (under autocast) and repacks every weight in every call, which is most of the
time of a short query, and runs bias, GELU and residual sums as passes of their own. Here a layer is
four products: queries, keys and values together; the attention's output plus its residual; the
first feed-forward one with GELU; the second with its residual.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertModel

from colbert_fast.model.device import multiplies_bfloat16

__all__ = ["can_pack", "pack_bert"]

# Rows that the packing is tuned for; any number of rows is right with it.
TYPICAL_ROWS = 2048


def can_pack(backbone: Any, dtype: torch.dtype) -> bool:
    """Whether `pack_bert` computes what `backbone` does: a plain BERT on a CPU with oneDNN."""
    onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if type(backbone) is not BertModel or not onednn:
        return False
    config = backbone.config
    device = next(backbone.parameters()).device
    linear = [layer for layer in backbone.encoder.modules() if hasattr(layer, "weight")]
    return (
        device.type == "cpu"
        and (dtype == torch.float32 or multiplies_bfloat16(device))
        and config.hidden_act == "gelu"
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
        and not config.is_decoder
        # Adapters put other layers in their place.
        and all(type(layer) in (nn.Linear, nn.LayerNorm) for layer in linear)
    )


def pack_bert(backbone: Any, dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    """The function from (texts, length) ids and mask to (texts, length, hidden) of `dtype`.

    Parameters
    ----------
    backbone : BertModel
        One that `can_pack` accepts. Its weights are copied: later changes are not seen.
    dtype : torch.dtype
        float32 or bfloat16, of the weights and of everything between the layers; layer norms and
        softmax sum in float32.
    """
    embeddings = backbone.embeddings
    words = embeddings.word_embeddings.weight.detach().float()
    types = embeddings.token_type_embeddings.weight.detach().float()
    positions = embeddings.position_embeddings.weight.detach().float() + types[0]
    norm = _Norm.of(embeddings.LayerNorm, torch.float32)
    layers = [_Layer.of(layer, dtype) for layer in backbone.encoder.layer]

    def forward(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        summed = functional.embedding(input_ids, words) + positions[: input_ids.shape[1]]
        hidden = norm(summed).to(dtype)
        seen = attention_mask.bool()
        mask = None if bool(seen.all()) else seen[:, None, None, :]
        for layer in layers:
            hidden = layer(hidden, mask)
        return hidden

    return forward


@dataclass(frozen=True)
class _Linear:
    """x W^T + b, then GELU or plus a residual, in one oneDNN primitive."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, layers: list[nn.Linear], dtype: torch.dtype) -> _Linear:
        weight = torch.cat([layer.weight.detach() for layer in layers]).to(dtype)
        bias = torch.cat([layer.bias.detach() for layer in layers]).to(dtype)
        return cls(torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS), bias)

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, activation, [], "none"
        )
        return out

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, residual, self.weight, self.bias, "add"
        )
        return out


@dataclass(frozen=True)
class _Norm:
    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, norm: nn.LayerNorm, dtype: torch.dtype) -> _Norm:
        return cls(norm.weight.detach().to(dtype), norm.bias.detach().to(dtype), norm.eps)

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class _Layer:
    heads: int
    project: _Linear
    merge: _Linear
    widen: _Linear
    narrow: _Linear
    attention_norm: _Norm
    output_norm: _Norm

    @classmethod
    def of(cls, layer: Any, dtype: torch.dtype) -> _Layer:
        attention, output = layer.attention.self, layer.attention.output
        return cls(
            heads=attention.num_attention_heads,
            project=_Linear.of([attention.query, attention.key, attention.value], dtype),
            merge=_Linear.of([output.dense], dtype),
            widen=_Linear.of([layer.intermediate.dense], dtype),
            narrow=_Linear.of([layer.output.dense], dtype),
            attention_norm=_Norm.of(output.LayerNorm, dtype),
            output_norm=_Norm.of(layer.output.LayerNorm, dtype),
        )

    def __call__(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        texts, length, width = hidden.shape
        size = width // self.heads
        together = self.project(hidden).view(texts, length, 3, self.heads, size)
        Q, K, V = together.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(Q, K, V, attn_mask=mask)
        mixed = mixed.transpose(1, 2).reshape(texts, length, width)
        hidden = self.attention_norm(self.merge.plus(mixed, hidden))
        wide = self.widen(hidden, "gelu")
        return self.output_norm(self.narrow.plus(wide, hidden))
