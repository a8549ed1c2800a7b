"""Stanford ColBERT's layout: one file of weights, the projection in it, and artifact.metadata."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import nn

from colbert_fast.errors import CheckpointError
from colbert_fast.model.config import PUNCTUATION, ModelConfig
from colbert_fast.model.parts import Checkpoint, check_fit, config_from, fill_layer
from colbert_fast.model.projection import Dense, Projection
from colbert_fast.model.pylate import save_tokenizer, write_beside, write_json
from colbert_fast.model.weights import (
    load_backbone,
    load_tokenizer,
    read_json,
    read_settings,
    read_weights,
    setting,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["load_stanford", "save_stanford"]

logger = logging.getLogger(__name__)


def load_stanford(folder: Path, *, allow_pickle: bool) -> Checkpoint:
    """Read such a folder; CheckpointError naming the file or key that is wrong."""
    path = folder / "artifact.metadata"
    metadata = read_settings(path)
    weights = read_weights(folder, allow_pickle=allow_pickle, only="linear.weight")
    if "linear.weight" not in weights:
        raise CheckpointError(f"{folder}: key 'linear.weight' (the projection) is missing")
    shape = weights["linear.weight"].shape
    if len(shape) != 2:
        raise CheckpointError(
            f"{folder}: key 'linear.weight' has shape {list(shape)}, want a matrix"
        )
    rows, columns = shape
    if metadata.get("dim", rows) != rows:
        raise CheckpointError(
            f"{path}: key 'dim' is {metadata['dim']}, but 'linear.weight' has {rows} rows"
        )
    layer = Dense(columns, rows)
    fill_layer(layer, {"linear.weight": weights["linear.weight"]}, folder)
    tokenizer = load_tokenizer(folder)
    backbone = load_backbone(folder, allow_pickle=allow_pickle, extra_keys=("linear.weight",))
    config = _stanford_config(metadata, tokenizer, rows, path)
    return check_fit(Checkpoint(config, tokenizer, backbone, Projection([layer])), folder)


def _stanford_config(
    metadata: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, dim: int, path: Path
) -> ModelConfig:
    if metadata.get("similarity", "cosine") not in ("cosine", "l2"):
        # On unit vectors l2 is 2 cos - 2 for each query token: the same ranking.
        raise CheckpointError(f"{path}: key 'similarity': unknown {metadata['similarity']!r}")
    skip = _stanford_skiplist(tokenizer) if metadata.get("mask_punctuation", True) else ()
    return config_from(
        path,
        dim=dim,
        query_length=metadata.get("query_maxlen", 32),
        document_length=metadata.get("doc_maxlen", 220),
        query_prefix=_stanford_marker(path, metadata, "query_token_id", "[unused0]", tokenizer),
        document_prefix=_stanford_marker(path, metadata, "doc_token_id", "[unused1]", tokenizer),
        attend_to_expansion_tokens=bool(metadata.get("attend_to_mask_tokens", False)),
        skiplist_words=skip,
    )


def _stanford_marker(
    path: Path,
    metadata: Mapping[str, Any],
    key: str,
    default: str,
    tokenizer: PreTrainedTokenizerBase,
) -> str:
    """The marker token; the unknown token where the vocabulary lacks it, as in training there."""
    marker = setting(path, metadata, key, default) or default
    if marker in tokenizer.get_vocab():
        return marker
    unknown = str(tokenizer.unk_token or "")
    logger.warning("%s: %r is not in the vocabulary; the marker is %r", key, marker, unknown)
    return unknown


def _stanford_skiplist(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """First sub-token of each punctuation symbol, which is what the original code compares."""
    words: dict[str, None] = {}
    for symbol in PUNCTUATION:
        pieces = tokenizer.tokenize(symbol)
        if pieces:
            words[pieces[0]] = None
    return tuple(words)


def save_stanford(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a folder that colbert-ai loads, with the same embeddings.

    Raises
    ------
    CheckpointError
        The layout cannot say what the model does; the message names it.
    """
    metadata = _stanford_metadata(checkpoint)
    backbone = checkpoint.backbone
    weights = {
        f"{backbone.base_model_prefix}.{key}": value for key, value in backbone.state_dict().items()
    }
    weights["linear.weight"] = checkpoint.projection.dense_layers[0].linear.weight
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    settings = copy.deepcopy(backbone.config)
    settings.architectures = ["HF_ColBERT"]
    with write_beside(folder) as new:
        settings.save_pretrained(new)
        save_tokenizer(checkpoint.tokenizer, new)
        _rename_tokenizer(new / "tokenizer_config.json")
        save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
        write_json(new / "artifact.metadata", metadata)


def _rename_tokenizer(path: Path) -> None:
    """Call a generic tokenizer what transformers 4 called it, which colbert-ai runs on."""
    settings = read_json(path, dict)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        write_json(path, {**settings, "tokenizer_class": "PreTrainedTokenizerFast"})


def _stanford_metadata(checkpoint: Checkpoint) -> dict[str, object]:
    config, layers = checkpoint.config, checkpoint.projection.dense_layers
    last = layers[-1]
    plain = type(last.activation) is nn.Identity and not last.use_residual
    if len(layers) > 1 or not plain or last.state_dict().keys() != {"linear.weight"}:
        raise CheckpointError(
            "Stanford's layout has one linear layer without bias behind the encoder"
        )
    only = {"query_prompt": "", "document_prompt": "", "do_query_expansion": True}
    for name, wanted in only.items():
        value = getattr(config, name)
        if value != wanted:
            raise CheckpointError(f"{name}: Stanford's layout has only {wanted!r}, not {value!r}")
    vocabulary = checkpoint.tokenizer.get_vocab()
    for name in ("query_prefix", "document_prefix"):
        if getattr(config, name) not in vocabulary:
            raise CheckpointError(
                f"{name}: Stanford's layout needs a token of the vocabulary as the marker, not "
                f"{getattr(config, name)!r}"
            )
    skipped = vocabulary.keys() & config.skiplist_words
    if skipped not in (set(), vocabulary.keys() & _stanford_skiplist(checkpoint.tokenizer)):
        raise CheckpointError("skiplist_words: Stanford's layout skips punctuation or nothing")
    return {
        "query_token_id": config.query_prefix,
        "doc_token_id": config.document_prefix,
        "query_maxlen": config.query_length,
        "doc_maxlen": config.document_length,
        "dim": config.dim,
        "similarity": "cosine",
        "attend_to_mask_tokens": config.attend_to_expansion_tokens,
        "mask_punctuation": bool(skipped),
    }
