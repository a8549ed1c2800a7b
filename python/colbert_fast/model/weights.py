"""Weights, and files of a Hugging Face model folder: backbone, tokenizer, hub download."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import normalizers
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from colbert_fast.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "TRANSFORMER_CONFIG",
    "load_backbone",
    "load_tokenizer",
    "mean_weights",
    "quiet_transformers",
    "read_json",
    "read_settings",
    "read_weights",
    "reason_of",
    "resolve_folder",
    "setting",
]

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Enough for every layout that is read here, without ONNX, OpenVINO or TensorFlow copies.
HUB_FILES = ("*.json", "*.txt", "*.model", "artifact.metadata", "*model*.safetensors")
HUB_PICKLES = "*pytorch_model*.bin"

# What sentence-transformers writes beside a tokenizer.
TRANSFORMER_CONFIG = "sentence_bert_config.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")

# The head that sentence classifiers use; late interaction never does.
UNUSED_HEAD = "pooler."


def resolve_folder(
    path_or_hub_id: str | Path, *, allow_pickle: bool, revision: str | None
) -> tuple[Path, str]:
    """Find a model: a local folder as it is, anything else from the hub or its cache.

    Parameters
    ----------
    path_or_hub_id : str or Path
        A hub id may end in "@revision".
    allow_pickle : bool
        Download pytorch_model.bin too.
    revision : str, optional

    Returns
    -------
    tuple of Path and str
        The folder, and the name to find it by again.

    Raises
    ------
    CheckpointError
        If it is neither.
    """
    folder = Path(path_or_hub_id).expanduser()
    if folder.is_dir():
        return folder, str(folder.resolve())
    if folder.exists():
        raise CheckpointError(f"{folder}: want a model folder, got a file")
    name = str(path_or_hub_id)
    if isinstance(path_or_hub_id, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CheckpointError(f"{name}: no such folder")
    if revision is None and "@" in name:
        name, revision = name.rsplit("@", 1)
    # At once: any module of a model may be the one that is pickled.
    folder = _download(name, (*HUB_FILES, HUB_PICKLES) if allow_pickle else HUB_FILES, revision)
    return folder, name if revision is None else f"{name}@{revision}"


def _download(name: str, patterns: Sequence[str], revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise CheckpointError(f"{name}: no such folder, and no valid hub id") from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{name}: no such folder, and the Hugging Face hub did not give it "
            f"({type(error).__name__}); check the name and the network, or download the model "
            "elsewhere and pass its folder"
        ) from error


def read_json(path: Path, kind: type[T]) -> T:
    """A JSON file's value; CheckpointError with its name if it is missing, broken or no `kind`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, kind):
        raise CheckpointError(f"{path}: want {kind.__name__}, got {value!r:.60}")
    return value


def read_settings(path: Path) -> dict[str, Any]:
    """The keys of a JSON file that need not be there."""
    return read_json(path, dict) if path.is_file() else {}


def setting(path: Path, settings: Mapping[str, Any], key: str, default: T) -> T:
    """A key's value, which must be of the default's type; the default if it is null or missing."""
    value = settings.get(key)
    if value is None:
        return default
    if not isinstance(value, type(default)):
        kind = type(default).__name__
        raise CheckpointError(f"{path}: key {key!r}: want {kind}, got {value!r:.60}")
    return value


def read_weights(folder: Path, *, allow_pickle: bool, only: str | None = None) -> dict[str, Tensor]:
    """Tensors of a folder by key, sharded or not, on the CPU: all, or at most the one asked for."""
    files, safe = _weight_files(folder, allow_pickle=allow_pickle)
    weights: dict[str, Tensor] = {}
    for path in files:
        found = _read_safetensors(path, only) if safe else _read_pickle(path, only)
        weights.update(found)
    return weights


def _weight_files(folder: Path, *, allow_pickle: bool) -> tuple[list[Path], bool]:
    """The files of a folder's weights, and whether these are safetensors."""
    for name, safe in (("model.safetensors", True), ("pytorch_model.bin", False)):
        whole, index = folder / name, folder / f"{name}.index.json"
        if not whole.is_file() and not index.is_file():
            continue
        if not safe and not allow_pickle:
            raise CheckpointError(
                f"{whole}: weights in pickle format, and no model.safetensors; pass "
                "allow_pickle=True if you trust the source (it is read with weights_only=True)"
            )
        if whole.is_file():
            return [whole], safe
        shards: dict[str, object] = setting(index, read_json(index, dict), "weight_map", {})
        return [folder / shard for shard in sorted({str(each) for each in shards.values()})], safe
    raise CheckpointError(
        f"{folder}: no model.safetensors and no pytorch_model.bin"
        + ("" if allow_pickle else " (which the hub is asked for with allow_pickle=True only)")
    )


def _read_safetensors(path: Path, only: str | None) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            keys = [key for key in file.keys() if only in (None, key)]  # noqa: SIM118
            return {key: file.get_tensor(key) for key in keys}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: unreadable safetensors: {error}") from error


def _read_pickle(path: Path, only: str | None) -> dict[str, Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, pickle's own included
        raise CheckpointError(f"{path}: unreadable: {error}") from error
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise CheckpointError(f"{path}: want a dict of tensors, got {weights!r:.60}")
    return {key: weights[key] for key in weights if only in (None, key)}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer; CheckpointError if there is none that transformers can read."""
    # Without any file, recent transformers make up an empty vocabulary.
    if not any(path.match(name) for path in folder.iterdir() for name in TOKENIZER_FILES):
        raise CheckpointError(f"{folder}: no tokenizer file (one of {', '.join(TOKENIZER_FILES)})")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: no readable tokenizer: {reason_of(error)}") from error
    path = folder / TRANSFORMER_CONFIG
    if setting(path, read_settings(path), "do_lower_case", False):
        _lower_case(tokenizer, path)
    return tokenizer


def _lower_case(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Have it make texts lower-case before all else, as sentence-transformers does."""
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{path}: key 'do_lower_case': only with a fast tokenizer, not with "
            f"{type(tokenizer).__name__}; save the model again with tokenizer.json"
        )
    inner = tokenizer.backend_tokenizer
    own = [] if inner.normalizer is None else [inner.normalizer]
    inner.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])


def load_backbone(
    folder: Path, *, allow_pickle: bool, extra_keys: Sequence[str] = ()
) -> PreTrainedModel:
    """The folder's encoder in float32 and eval mode, with no weight left to chance.

    Parameters
    ----------
    folder : Path
    allow_pickle : bool
    extra_keys : sequence of str
        Keys of the file that are known not to be the encoder's.

    Raises
    ------
    CheckpointError
        Naming the first key that is missing or of the wrong shape.
    """
    _, safe = _weight_files(folder, allow_pickle=allow_pickle)
    try:
        with quiet_transformers():
            backbone, report = AutoModel.from_pretrained(
                folder,
                use_safetensors=safe,
                trust_remote_code=False,
                output_loading_info=True,
                # Reported, so that _check_report can name the key.
                ignore_mismatched_sizes=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: unreadable encoder: {reason_of(error)}") from error
    # Older transformers name the keys as the file does, newer ones without its prefix.
    prefix = f"{backbone.base_model_prefix}."
    missing = sorted(key.removeprefix(prefix) for key in report["missing_keys"])
    _check_report(folder, report, [key for key in missing if not key.startswith(UNUSED_HEAD)])
    left = sorted(set(report["unexpected_keys"]) - set(extra_keys))
    if left:
        logger.info("%s: %d keys not of the encoder, first %s", folder, len(left), left[0])
    if any(key.startswith(UNUSED_HEAD) for key in missing):
        backbone.pooler = None
    _check_language(folder, backbone.config)
    # Older transformers load float32, newer ones whatever was saved.
    model: PreTrainedModel = backbone.float().eval()
    return model


def _check_language(folder: Path, config: Any) -> None:
    """X-MOD has adapters by language, and raises at the first text if it is told none."""
    if config.model_type == "xmod" and config.default_language is None:
        raise CheckpointError(
            f"{folder / 'config.json'}: key 'default_language' is missing; set it to one of "
            f"{', '.join(config.languages)}"
        )


def _check_report(folder: Path, report: Mapping[str, Any], missing: Sequence[str]) -> None:
    for key, got, wanted in report["mismatched_keys"]:
        raise CheckpointError(f"{folder}: key {key!r} has shape {list(got)}, want {list(wanted)}")
    if missing:
        raise CheckpointError(
            f"{folder}: key {missing[0]!r} is missing ({len(missing)} in all); "
            "the file does not hold this encoder's weights"
        )


_LOCK = threading.Lock()
# What was before each that is in `quiet_transformers`: in whatever order they leave, the last one
# finds what the first one found.
_before: list[tuple[int, bool, int]] = []


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars, reports and warnings of these libraries: what matters is checked and raised here."""
    others = logging.getLogger("sentence_transformers")
    with _LOCK:
        bar = transformers_logging.is_progress_bar_enabled()
        _before.append((transformers_logging.get_verbosity(), bar, others.level))
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        others.setLevel(logging.ERROR)
    try:
        yield
    finally:
        with _LOCK:
            level, bar, others_level = _before.pop()
            transformers_logging.set_verbosity(level)
            if bar:
                transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
            others.setLevel(others_level)


def mean_weights(models: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of state dicts, summed in float64; tables of integers are the first's."""
    rest = iter(models)
    first, count = next(rest), 1
    sums = {key: value.double() for key, value in first.items() if value.is_floating_point()}
    for weights in rest:
        count += 1
        for key, total in sums.items():
            total += weights[key]
    return {**first, **{key: (total / count).to(torch.float32) for key, total in sums.items()}}


def reason_of(error: Exception) -> str:
    """What a library says in one line, or that models with code of their own are not run."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return (
            "it needs Python code that comes with it, which is not run here; take a model of an "
            "architecture that transformers has"
        )
    return text[:300]
