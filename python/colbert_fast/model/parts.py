"""What a model folder holds, and the checks that every reader of one makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from colbert_fast.errors import CheckpointError
from colbert_fast.model.config import ModelConfig
from colbert_fast.model.projection import Projection

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Checkpoint",
    "check_fit",
    "check_lengths",
    "config_from",
    "fill_layer",
    "override_config",
    "position_limit",
]


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a model folder holds."""

    config: ModelConfig
    tokenizer: PreTrainedTokenizerBase
    backbone: PreTrainedModel
    projection: Projection


def config_from(path: Path, **values: Any) -> ModelConfig:
    """ModelConfig, with its complaints turned into CheckpointError naming the file."""
    try:
        return ModelConfig(**values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def fill_layer(layer: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Copy weights into a layer: every key present, none left over, every shape equal."""
    own = layer.state_dict()
    for key, tensor in own.items():
        if key not in weights:
            raise CheckpointError(f"{folder}: key {key!r} is missing")
        if weights[key].shape != tensor.shape:
            raise CheckpointError(
                f"{folder}: key {key!r} has shape {list(weights[key].shape)}, "
                f"want {list(tensor.shape)}"
            )
    extra = sorted(set(weights) - set(own))
    if extra:
        raise CheckpointError(f"{folder}: unexpected key {extra[0]!r}")
    layer.load_state_dict({key: weights[key].float() for key in own})


def check_fit(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Raise CheckpointError if the parts do not fit each other."""
    width = checkpoint.backbone.config.hidden_size
    for layer in checkpoint.projection.dense_layers:
        if layer.in_features != width:
            raise CheckpointError(
                f"{folder}: key 'linear.weight' takes {layer.in_features} features, "
                f"but what comes before it gives {width}"
            )
        width = layer.out_features
    rows = len(next(checkpoint.backbone.get_input_embeddings().parameters()))
    if len(checkpoint.tokenizer) > rows:
        raise CheckpointError(
            f"{folder}: the tokenizer has {len(checkpoint.tokenizer)} tokens, "
            f"but the word embeddings only {rows} rows"
        )
    return checkpoint


def override_config(config: ModelConfig, **changes: object) -> ModelConfig:
    """The configuration with every change that is not None."""
    given: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    return replace(config, **given)


def check_lengths(config: ModelConfig, backbone: nn.Module) -> None:
    """Raise CheckpointError for lengths beyond the backbone's table of positions, if it has one."""
    limit = position_limit(backbone)
    for field in ("query_length", "document_length"):
        length = getattr(config, field)
        if limit is not None and length > limit:
            raise CheckpointError(
                f"{field}: {length} is more than the encoder's {limit} positions; "
                f"pass {field}={limit} or less"
            )


def position_limit(backbone: nn.Module) -> int | None:
    """Most tokens that the backbone's tables of positions have room for; None without any."""
    limits = [
        # The RoBERTa family starts counting behind the padding index.
        table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
        for name, table in backbone.named_modules()
        if name.endswith("position_embeddings") and isinstance(table, nn.Embedding)
    ]
    return min(limits, default=None)
