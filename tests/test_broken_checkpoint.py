"""Weights and files of model folders: whole, pickled, in shards, from the hub, wrong or foreign."""

from __future__ import annotations

import fnmatch
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import XmodConfig, XmodModel
from transformers.utils import logging as transformers_logging

from colbert_fast.errors import CheckpointError
from colbert_fast.model import ColBERT
from colbert_fast.model.weights import quiet_transformers
from tiny_models import (
    DIM,
    HIDDEN,
    VOCABULARY,
    make_backbone,
    stanford_weights,
    write_json,
    write_plain,
    write_pylate,
    write_stanford,
)

METADATA = {"query_maxlen": 12, "doc_maxlen": 20, "dim": DIM}
SETTINGS = {"query_length": 12, "document_length": 20}


def load(folder: Path, **options: Any) -> ColBERT:
    return ColBERT.from_pretrained(folder, dtype="float32", **options)


def same(first: ColBERT, second: ColBERT) -> bool:
    texts = ["The sky is blue.", "why"]
    pairs = zip(first.encode_documents(texts), second.encode_documents(texts), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_pickled_weights_only_on_request(tmp_path: Path) -> None:
    pickled = write_stanford(tmp_path / "bin", metadata=METADATA, pickle=True)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*allow_pickle=True"):
        load(pickled)
    safe = load(write_stanford(tmp_path / "safe", metadata=METADATA))
    assert same(load(pickled, allow_pickle=True), safe)


class Evil:
    """Would run code if it were unpickled freely."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('code ran')",)


def test_a_pickle_that_runs_code_is_refused_even_on_request(tmp_path: Path) -> None:
    folder = write_stanford(tmp_path, metadata=METADATA, pickle=True)
    torch.save({"linear.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="unreadable"):
        load(folder, allow_pickle=True)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither config\.json nor modules\.json"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "model.dnn").touch()
    with pytest.raises(CheckpointError, match="want a model folder, got a file"):
        load(tmp_path / "model.dnn")


def test_hub_failures_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="check the name and the network") as caught:
        ColBERT.from_pretrained("nobody/no-such-model-anywhere")
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="no valid hub id"):
        ColBERT.from_pretrained("no such id!")


def hub_of(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Have the hub hold a folder; the revisions that it is asked for."""
    asked: list[str | None] = []

    def download(_name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(revision)
        for path in source.rglob("*.*"):
            name = path.relative_to(source)
            if path.is_file() and any(fnmatch.fnmatch(str(name), each) for each in allow_patterns):
                (cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, cache / name)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


def test_hub_downloads_pickles_only_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_stanford(tmp_path / "hub", metadata=METADATA, pickle=True)
    asked = hub_of(folder, tmp_path / "cache", monkeypatch)
    with pytest.raises(CheckpointError, match="with allow_pickle=True only"):
        ColBERT.from_pretrained("somebody/colbert")
    model = ColBERT.from_pretrained("somebody/colbert@v2", allow_pickle=True)
    assert model.name == "somebody/colbert@v2"
    assert asked == [None, "v2"]


def test_hub_downloads_one_pickle_beside_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_pylate(tmp_path / "hub", **SETTINGS)
    whole = load(folder)
    weights = folder / "1_Dense" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    hub_of(folder, tmp_path / "cache", monkeypatch)
    with pytest.raises(CheckpointError, match=r"1_Dense: no model.*with allow_pickle=True only"):
        ColBERT.from_pretrained("somebody/colbert")
    model = ColBERT.from_pretrained("somebody/colbert", dtype="float32", allow_pickle=True)
    assert same(model, whole)


def test_broken_files(tmp_path: Path) -> None:
    folder = write_stanford(tmp_path, metadata=METADATA)
    (folder / "artifact.metadata").write_text("{")
    with pytest.raises(CheckpointError, match=r"artifact\.metadata: not JSON"):
        load(folder)
    write_json(folder / "artifact.metadata", METADATA)
    (folder / "model.safetensors").write_bytes(b"not tensors at all")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: unreadable"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors and no pytorch_model\.bin"):
        load(folder)


def test_missing_tokenizer(tmp_path: Path) -> None:
    folder = write_stanford(tmp_path, metadata=METADATA)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match="tokenizer"):
        load(folder)


def test_tokenizer_larger_than_the_embeddings(tmp_path: Path) -> None:
    folder = write_plain(tmp_path, extra=("[Q] ",), backbone=make_backbone())
    with pytest.raises(CheckpointError, match=r"the tokenizer has \d+ tokens"):
        load(folder, document_length=60)


@pytest.mark.parametrize(
    ("name", "part"),
    [("model.safetensors", "model-{}.safetensors"), ("pytorch_model.bin", "pytorch_model-{}.bin")],
)
def test_sharded_weights(tmp_path: Path, name: str, part: str) -> None:
    whole = load(write_stanford(tmp_path / "a", metadata=METADATA))
    folder = write_stanford(tmp_path / "b", metadata=METADATA)
    (folder / "model.safetensors").unlink()
    weights = stanford_weights()
    names = {key: part.format(f"0000{n % 2 + 1}-of-00002") for n, key in enumerate(weights)}
    for each in set(names.values()):
        shard = {key: value for key, value in weights.items() if names[key] == each}
        if name.endswith("bin"):
            torch.save(shard, folder / each)
        else:
            save_file(shard, folder / each, metadata={"format": "pt"})
    write_json(folder / f"{name}.index.json", {"metadata": {}, "weight_map": names})
    assert same(load(folder, allow_pickle=name.endswith("bin")), whole)


@pytest.mark.parametrize(
    ("layout", "name", "value", "message"),
    [
        ("stanford", "config.json", [], r"config\.json: want dict, got \[\]"),
        ("stanford", "artifact.metadata", None, r"artifact\.metadata: want dict, got None"),
        ("stanford", "artifact.metadata", {"doc_token_id": [1]}, "'doc_token_id': want str"),
        ("pylate", "modules.json", {}, r"modules\.json: want list, got \{\}"),
        ("pylate", "modules.json", [{"path": ""}], "want modules with a 'type' each"),
        ("pylate", "config_sentence_transformers.json", [], "want dict, got"),
        ("pylate", "config_sentence_transformers.json", {"prompts": ["a"]}, "'prompts': want dict"),
        ("pylate", "config_sentence_transformers.json", {"skiplist_words": 5}, "want list, got 5"),
        ("pylate", "sentence_bert_config.json", None, "want dict, got None"),
        ("pylate", "1_Dense/config.json", [], "want dict, got"),
    ],
)
def test_json_of_the_wrong_kind(
    tmp_path: Path, layout: str, name: str, value: object, message: str
) -> None:
    if layout == "stanford":
        write_stanford(tmp_path, metadata=METADATA)
    else:
        write_pylate(tmp_path, **SETTINGS)
    write_json(tmp_path / name, value)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_weights_of_the_wrong_kind(tmp_path: Path) -> None:
    weights = {**stanford_weights(), "linear.weight": torch.zeros(DIM)}
    folder = write_stanford(tmp_path, weights=weights, metadata=METADATA)
    with pytest.raises(CheckpointError, match=r"'linear\.weight' has shape \[16\], want a matrix"):
        load(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"linear.weight": 3}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="want a dict of tensors, got"):
        load(folder, allow_pickle=True)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}})
    with pytest.raises(CheckpointError, match=r"key 'linear\.weight' .* is missing"):
        load(folder)


def test_code_that_comes_with_a_model_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(_question: str) -> str:
        raise AssertionError("asked whether to run code")

    monkeypatch.setattr("builtins.input", ask)
    path = write_plain(tmp_path) / "config.json"
    classes = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    write_json(path, {**json.loads(path.read_text()), "model_type": "own", "auto_map": classes})
    with pytest.raises(CheckpointError, match="Python code that comes with it, which is not run"):
        load(tmp_path)


def test_a_language_is_wanted_when_loading(tmp_path: Path) -> None:
    config = XmodConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=66,
        languages=["en_XX", "de_DE"],
    )
    folder = write_plain(tmp_path)
    XmodModel(config).save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"key 'default_language' .* one of en_XX, de_DE"):
        load(folder, document_length=60)
    config.default_language = "de_DE"
    config.save_pretrained(folder)
    assert len(load(folder, document_length=60).encode_queries("why")) == 1


def test_overlapping_loads_leave_the_messages_of_libraries_as_they_were() -> None:
    def levels() -> tuple[int, bool, int]:
        bar = transformers_logging.is_progress_bar_enabled()
        other = logging.getLogger("sentence_transformers").level
        return transformers_logging.get_verbosity(), bar, other

    before, first, second = levels(), quiet_transformers(), quiet_transformers()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert levels() == (logging.ERROR, False, logging.ERROR)
    second.__exit__(None, None, None)
    assert levels() == before
