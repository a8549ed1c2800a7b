"""Model folders in and out: Stanford ColBERT, PyLate / sentence-transformers, plain encoders, ours.

What we write is the PyLate layout, so one reader serves both.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colbert_fast.errors import CheckpointError
from colbert_fast.model.config import PUNCTUATION, ModelConfig
from colbert_fast.model.default import load_default
from colbert_fast.model.parts import Checkpoint, check_fit, config_from, fill_layer
from colbert_fast.model.projection import Dense, Projection, seeded_projection
from colbert_fast.model.pylate import load_modules, save_checkpoint
from colbert_fast.model.weights import (
    load_backbone,
    load_tokenizer,
    read_json,
    read_weights,
    resolve_folder,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Checkpoint", "find_checkpoint", "load_checkpoint", "save_checkpoint"]

DEFAULT_DIM = 128

logger = logging.getLogger(__name__)


def find_checkpoint(
    path_or_hub_id: str | Path | None,
    *,
    allow_pickle: bool,
    revision: str | None,
    dim: int | None,
    seed: int,
) -> tuple[Checkpoint, str]:
    """Load the default model, a folder or a hub id; also the name to find it by again."""
    if path_or_hub_id is None or path_or_hub_id == "default":
        checkpoint, name = load_default(), "default"
    else:
        folder, name = resolve_folder(path_or_hub_id, allow_pickle=allow_pickle, revision=revision)
        checkpoint = load_checkpoint(folder, allow_pickle=allow_pickle, dim=dim, seed=seed)
    if dim not in (None, checkpoint.config.dim):
        raise ValueError(f"dim: want {dim}, but {name} has {checkpoint.config.dim}")
    return checkpoint, name


def load_checkpoint(
    folder: Path, *, allow_pickle: bool = False, dim: int | None = None, seed: int = 0
) -> Checkpoint:
    """Read a model folder of any supported kind.

    Parameters
    ----------
    folder : Path
    allow_pickle : bool
        Accept pytorch_model.bin, read with torch.load(weights_only=True).
    dim : int, optional
        Size of the projection added to an encoder that has none, 128 by default.
    seed : int
        Its seed.

    Raises
    ------
    CheckpointError
        Naming the file or key that is missing, foreign or of the wrong shape.
    """
    if (folder / "modules.json").is_file():
        checkpoint = load_modules(folder, allow_pickle=allow_pickle)
        if checkpoint is not None:
            return checkpoint
    elif not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder}: neither config.json nor modules.json; not a model folder that I know"
        )
    elif _is_stanford(folder):
        return _load_stanford(folder, allow_pickle=allow_pickle)
    return _load_plain(folder, allow_pickle=allow_pickle, dim=dim or DEFAULT_DIM, seed=seed)


def _is_stanford(folder: Path) -> bool:
    architectures = read_json(folder / "config.json").get("architectures") or []
    return "HF_ColBERT" in architectures or (folder / "artifact.metadata").is_file()


def _load_stanford(folder: Path, *, allow_pickle: bool) -> Checkpoint:
    path = folder / "artifact.metadata"
    metadata = read_json(path) if path.is_file() else {}
    weights = read_weights(folder, allow_pickle=allow_pickle, only="linear.weight")
    if "linear.weight" not in weights:
        raise CheckpointError(f"{folder}: key 'linear.weight' (the projection) is missing")
    rows, columns = weights["linear.weight"].shape
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
        query_prefix=_stanford_marker(metadata, "query_token_id", "[unused0]", tokenizer),
        document_prefix=_stanford_marker(metadata, "doc_token_id", "[unused1]", tokenizer),
        attend_to_expansion_tokens=bool(metadata.get("attend_to_mask_tokens", False)),
        skiplist_words=skip,
    )


def _stanford_marker(
    metadata: Mapping[str, Any], key: str, default: str, tokenizer: PreTrainedTokenizerBase
) -> str:
    """The marker token; the unknown token where the vocabulary lacks it, as in training there."""
    marker: str = metadata.get(key) or default
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


def _load_plain(folder: Path, *, allow_pickle: bool, dim: int, seed: int) -> Checkpoint:
    root = folder
    if not (root / "config.json").is_file():
        root = folder / str(read_json(folder / "modules.json")[0].get("path", ""))
    tokenizer = load_tokenizer(root)
    backbone = load_backbone(root, allow_pickle=allow_pickle)
    logger.warning(
        "%s has no ColBERT projection: added an UNTRAINED one to %d dimensions (seed %d); "
        "train the model before relying on its results",
        folder,
        dim,
        seed,
    )
    projection = seeded_projection(backbone.config.hidden_size, dim, seed)
    config = config_from(
        folder / "config.json",
        dim=dim,
        query_prefix="[unused0]" if "[unused0]" in tokenizer.get_vocab() else "",
        document_prefix="[unused1]" if "[unused1]" in tokenizer.get_vocab() else "",
    )
    return check_fit(Checkpoint(config, tokenizer, backbone, projection), folder)
