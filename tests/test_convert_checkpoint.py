"""Checkpoints in Stanford's layout: the same embeddings, or a refusal that says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

from colbert_fast.errors import CheckpointError  # noqa: E402
from colbert_fast.model import ColBERT  # noqa: E402
from colbert_fast.model.checkpoint import convert_checkpoint  # noqa: E402
from tiny_models import (  # noqa: E402
    DIM,
    make_matrix,
    write_dense,
    write_modules,
    write_plain,
    write_pylate,
    write_stanford,
)

TEXTS = ["The sky is blue.", "why", "", "late interaction search engine, plaid"]
METADATA = {"dim": DIM, "query_maxlen": 12, "doc_maxlen": 20, "mask_punctuation": False}


def rows(folder: Path) -> np.ndarray:
    model = ColBERT.from_pretrained(folder, dtype="float32")
    return np.concatenate([*model.encode_documents(TEXTS), *model.encode_queries(TEXTS)])


def test_stanford_to_pylate_and_back(tmp_path: Path) -> None:
    first = write_stanford(tmp_path / "first", metadata=METADATA)
    convert_checkpoint(first, tmp_path / "second", "pylate")
    convert_checkpoint(tmp_path / "second", tmp_path / "third", "stanford")
    np.testing.assert_array_equal(rows(tmp_path / "second"), rows(first))
    np.testing.assert_array_equal(rows(tmp_path / "third"), rows(first))
    found = json.loads((tmp_path / "third" / "artifact.metadata").read_text())
    assert {key: found[key] for key in METADATA} == METADATA
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("first", "third"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("attend", [False, True])
def test_pylate_to_stanford_and_back(tmp_path: Path, attend: bool) -> None:
    settings: dict[str, Any] = {
        "query_length": 12,
        "document_length": 20,
        "attend_to_expansion_tokens": attend,
    }
    first = write_pylate(tmp_path / "first", extra=("[Q] ", "[D] "), **settings)
    convert_checkpoint(first, tmp_path / "second", "stanford")
    convert_checkpoint(tmp_path / "second", tmp_path / "third", "pylate")
    np.testing.assert_array_equal(rows(tmp_path / "second"), rows(first))
    np.testing.assert_array_equal(rows(tmp_path / "third"), rows(first))
    architectures = json.loads((tmp_path / "second" / "config.json").read_text())["architectures"]
    assert architectures == ["HF_ColBERT"]


def test_the_tokenizer_has_a_name_that_older_transformers_know(tmp_path: Path) -> None:
    first = write_stanford(tmp_path / "first", metadata=METADATA)
    convert_checkpoint(first, tmp_path / "second", "stanford")
    settings = json.loads((tmp_path / "second" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_query_expansion": False}, "do_query_expansion"),
        ({"prompts": {"query": "search: "}}, "query_prompt"),
        ({"query_prefix": "", "document_prefix": "[unused1]"}, "query_prefix"),
        ({"skiplist_words": ["sky", "."]}, "skiplist_words"),
    ],
)
def test_what_stanfords_layout_cannot_say(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    markers = {"query_prefix": "[unused0]", "document_prefix": "[unused1]"}
    first = write_pylate(tmp_path / "first", **{**markers, **settings})
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(first, tmp_path / "second", "stanford")
    assert [each.name for each in tmp_path.iterdir()] == ["first"]


@pytest.mark.parametrize("options", [{"use_residual": True}, {"bias": True}, {"layers": 2}])
def test_layers_that_stanfords_layout_lacks(tmp_path: Path, options: dict[str, Any]) -> None:
    first = tmp_path / "first"
    write_plain(first)
    write_modules(first, *["pylate.models.Dense.Dense"] * options.pop("layers", 1))
    tensors = {"linear.weight": make_matrix(), "residual.weight": make_matrix(seed=2)}
    tensors["linear.bias"] = torch.zeros(DIM)
    wanted = ["linear.weight"]
    wanted += ["residual.weight"] if "use_residual" in options else []
    wanted += ["linear.bias"] if "bias" in options else []
    write_dense(first / "1_Dense", {key: tensors[key] for key in wanted}, **options)
    if not options:
        write_dense(first / "2_Dense", {"linear.weight": make_matrix(columns=DIM)})
    with pytest.raises(CheckpointError, match="one linear layer without bias"):
        convert_checkpoint(first, tmp_path / "second", "stanford")


def test_targets_and_layouts(tmp_path: Path) -> None:
    first = write_stanford(tmp_path / "first", metadata=METADATA)
    with pytest.raises(FileExistsError, match="already exists"):
        convert_checkpoint(first, first, "pylate")
    with pytest.raises(ValueError, match="layout must be"):
        convert_checkpoint(first, tmp_path / "second", "onnx")  # type: ignore[arg-type]
