"""The PyLate and sentence-transformers layout: modules.json, N_Dense folders, two config files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors.torch import save_file

from colbert_fast.errors import CheckpointError
from colbert_fast.model.config import MAX_LENGTH, PUNCTUATION, ModelConfig
from colbert_fast.model.parts import Checkpoint, check_fit, config_from, fill_layer, position_limit
from colbert_fast.model.projection import ACTIVATIONS, Dense, Projection, identity_layer
from colbert_fast.model.weights import (
    TRANSFORMER_CONFIG,
    load_backbone,
    load_tokenizer,
    quiet_transformers,
    read_json,
    read_settings,
    read_weights,
    setting,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "CONFIG",
    "load_dense",
    "load_modules",
    "pylate_config",
    "pylate_settings",
    "save_checkpoint",
    "save_dense",
    "save_tokenizer",
    "write_beside",
    "write_json",
]

T = TypeVar("T")

CONFIG = "config_sentence_transformers.json"
TRANSFORMER = "sentence_transformers.models.Transformer"
DENSE = "sentence_transformers.models.Dense"
# The class above is read by everyone, but older versions of it know no residual.
RESIDUAL_DENSE = "pylate.models.Dense.Dense"


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the PyLate layout: backbone and tokenizer at the root, one N_Dense folder per layer.

    sentence-transformers 6 (`MultiVectorEncoder`) and PyLate read it with the same embeddings.
    Files are written beside the folder and moved in, so that a full disk leaves what was there,
    and so that a model may be saved over the files that its weights are mapped from.
    """
    with write_beside(folder) as new:
        _write_parts(new, checkpoint)


@contextmanager
def write_beside(folder: Path) -> Iterator[Path]:
    """A new folder, whose files then replace those of `folder`, unless the body raises."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        new = Path(name)
        yield new
        folder.mkdir(exist_ok=True)
        for path in sorted(new.rglob("*")):
            target = folder / path.relative_to(new)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                path.replace(target)


def _write_parts(folder: Path, checkpoint: Checkpoint) -> None:
    with quiet_transformers():
        checkpoint.backbone.save_pretrained(folder)
    save_tokenizer(checkpoint.tokenizer, folder)
    modules = [_module_entry(0, "", TRANSFORMER)]
    for number, layer in enumerate(checkpoint.projection.dense_layers, start=1):
        save_dense(folder / f"{number}_Dense", layer)
        kind = RESIDUAL_DENSE if layer.use_residual else DENSE
        modules.append(_module_entry(number, f"{number}_Dense", kind))
    config = checkpoint.config
    longest = max(config.query_length, config.document_length)
    write_json(folder / "modules.json", modules)
    write_json(folder / TRANSFORMER_CONFIG, {"max_seq_length": longest, "do_lower_case": False})
    write_json(folder / CONFIG, pylate_settings(config))


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write its files, without the truncation and padding of the last call."""
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)


def load_modules(folder: Path, *, allow_pickle: bool) -> Checkpoint | None:
    """A modules.json folder, or None if it makes one vector a text (a plain encoder to us)."""
    path, settings_path = folder / "modules.json", folder / CONFIG
    entries = _read_entries(path)
    kinds = [kind for kind, _ in entries]
    if not kinds or kinds[0] != "Transformer":
        raise CheckpointError(f"{path}: the first module must be a Transformer, got {kinds[:1]}")
    settings = read_settings(settings_path)
    multi_vector = settings.get("model_type") == "MultiVectorEncoder"
    if not multi_vector and ("Pooling" in kinds or "Dense" not in kinds):
        return None
    layers: list[Dense] = []
    skip: tuple[str, ...] = ()
    for number, (kind, entry) in enumerate(entries[1:], start=1):
        where = folder / str(entry.get("path", ""))
        behind = "Normalize" in kinds[:number]
        if kind == "Dense" and not behind:
            layers.append(load_dense(where, allow_pickle=allow_pickle))
        elif kind == "MultiVectorMask":
            skip = _multi_vector_skiplist(where / "config.json")
        elif kind != "Normalize":
            place = " behind a Normalize" if behind else ""
            raise CheckpointError(f"{path}: module {entry['type']!r} is not supported{place}")
    if multi_vector and "Normalize" not in kinds:
        raise CheckpointError(
            f"{path}: without a Normalize module scores depend on the lengths of vectors, which "
            "is not supported; train the model with one behind the last Dense"
        )
    root = folder / str(entries[0][1].get("path", ""))
    tokenizer, backbone = load_tokenizer(root), load_backbone(root, allow_pickle=allow_pickle)
    if not layers:  # PyLate would make a random layer of none when it reads what we save
        layers.append(identity_layer(backbone.config.hidden_size))
    dim = layers[-1].out_features
    if multi_vector:
        prompts: dict[str, Any] = setting(settings_path, settings, "prompts", {})
        longest = _longest_text(tokenizer, backbone)
        config = _multi_vector_config(
            root / TRANSFORMER_CONFIG, longest, dim=dim, prompts=prompts, skip=skip
        )
    else:
        config = pylate_config(settings, tokenizer, dim, settings_path)
    return check_fit(Checkpoint(config, tokenizer, backbone, Projection(layers)), folder)


def _read_entries(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The modules of a modules.json, each with the last part of its class name."""
    entries = read_json(path, list)
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
            raise CheckpointError(f"{path}: want modules with a 'type' each, got {entry!r:.60}")
    return [(entry["type"].rsplit(".", 1)[-1], entry) for entry in entries]


def load_dense(folder: Path, *, allow_pickle: bool) -> Dense:
    path = folder / "config.json"
    settings = read_json(path, dict)
    for key in ("in_features", "out_features"):
        if setting(path, settings, key, 0) < 1:
            raise CheckpointError(f"{path}: key {key!r}: want 1 or more, got {settings.get(key)!r}")
    name = str(settings.get("activation_function", "torch.nn.modules.linear.Identity"))
    activation = name.rsplit(".", 1)[-1]
    if activation not in ACTIVATIONS:
        raise CheckpointError(
            f"{path}: key 'activation_function': {name!r} is none of {', '.join(ACTIVATIONS)}"
        )
    layer = Dense(
        settings["in_features"],
        settings["out_features"],
        bias=bool(settings.get("bias", True)),
        activation=activation,
        use_residual=bool(settings.get("use_residual", False)),
    )
    fill_layer(layer, read_weights(folder, allow_pickle=allow_pickle), folder)
    return layer


def save_dense(folder: Path, layer: Dense) -> None:
    folder.mkdir(exist_ok=True)
    kind = type(layer.activation)
    settings: dict[str, object] = {
        "in_features": layer.in_features,
        "out_features": layer.out_features,
        "bias": layer.linear.bias is not None,
        "activation_function": f"{kind.__module__}.{kind.__qualname__}",
    }
    if layer.use_residual:
        settings["use_residual"] = True
    write_json(folder / "config.json", settings)
    tensors = {key: value.detach().cpu().contiguous() for key, value in layer.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")


def pylate_config(
    settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, dim: int, path: Path
) -> ModelConfig:
    def value(key: str, default: T) -> T:
        return setting(path, settings, key, default)

    vocabulary = tokenizer.get_vocab()
    prompts: dict[str, Any] = value("prompts", {})
    expansion = value("do_query_expansion", True)
    return config_from(
        path,
        dim=dim,
        query_length=value("query_length", 32),
        document_length=value("document_length", 180),
        query_prefix=value("query_prefix", "[Q] " if "[Q] " in vocabulary else ""),
        document_prefix=value("document_prefix", "[D] " if "[D] " in vocabulary else ""),
        query_prompt=prompts.get("query") or "",
        document_prompt=prompts.get("document") or "",
        do_query_expansion=expansion,
        attend_to_expansion_tokens=expansion and value("attend_to_expansion_tokens", False),
        skiplist_words=tuple(value("skiplist_words", list(PUNCTUATION))),
    )


def pylate_settings(config: ModelConfig) -> dict[str, object]:
    return {
        "model_type": "ColBERT",
        "prompts": {"query": config.query_prompt, "document": config.document_prompt},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": config.query_prefix,
        "document_prefix": config.document_prefix,
        "query_length": config.query_length,
        "document_length": config.document_length,
        "attend_to_expansion_tokens": config.attend_to_expansion_tokens,
        "skiplist_words": list(config.skiplist_words),
        "do_query_expansion": config.do_query_expansion,
    }


def _multi_vector_skiplist(path: Path) -> tuple[str, ...]:
    settings = read_json(path, dict)
    tasks = settings.get("skiplist_tasks") or ["document"]
    if tasks != ["document"] or settings.get("keep_only_token_ids"):
        raise CheckpointError(f"{path}: only a skip list for the task 'document' is supported")
    words: list[str] = setting(path, settings, "skiplist_words", [])
    return tuple(words)


def _longest_text(tokenizer: PreTrainedTokenizerBase, backbone: PreTrainedModel) -> int:
    """Most tokens where no length is pinned, as sentence-transformers 6 has it."""
    positions = getattr(backbone.config, "max_position_embeddings", -1)  # -1: no limit
    limits = [tokenizer.model_max_length, positions, position_limit(backbone), MAX_LENGTH]
    return int(min(limit for limit in limits if limit is not None and limit > 0))


def _multi_vector_config(
    path: Path, longest: int, *, dim: int, prompts: Mapping[str, Any], skip: tuple[str, ...]
) -> ModelConfig:
    """A folder saved by sentence-transformers 6's MultiVectorEncoder: markers are prompt text."""
    layout = read_settings(path)
    longest = setting(path, layout, "max_seq_length", longest)
    expansion: dict[str, Any] = setting(path, layout, "query_expansion", {})
    if expansion and (expansion.get("strategy") != "fixed" or expansion.get("token")):
        raise CheckpointError(f"{path}: key 'query_expansion': {expansion!r} is not supported")
    return config_from(
        path,
        dim=dim,
        query_length=expansion.get("length") or layout.get("query_length") or longest,
        document_length=layout.get("document_length") or longest,
        query_prompt=prompts.get("query") or "",
        document_prompt=prompts.get("document") or "",
        do_query_expansion=bool(expansion),
        attend_to_expansion_tokens=bool(expansion.get("attend")),
        skiplist_words=skip,
    )


def _module_entry(index: int, path: str, kind: str) -> dict[str, object]:
    return {"idx": index, "name": str(index), "path": path, "type": kind}


def write_json(path: Path, value: object) -> None:
    """Write one JSON file."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
