"""Folders of sentence-transformers 6: the same embeddings as there, or a refusal that says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from colbert_fast.errors import CheckpointError
from colbert_fast.model import ColBERT
from tiny_models import DIM, HIDDEN, METADATA, write_json, write_plain, write_pylate, write_stanford

library: Any = pytest.importorskip("sentence_transformers")
if not hasattr(library, "MultiVectorEncoder"):
    pytest.skip("sentence-transformers before 6 has no MultiVectorEncoder", allow_module_level=True)

from sentence_transformers.base.modules import Dense, Normalize, Transformer  # noqa: E402
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask  # noqa: E402

TEXTS = ["The sky is blue.", "why", "late interaction search engine, plaid " * 20]
TOKENS: dict[str, Any] = {"module_input_name": "token_embeddings"}


def load(folder: Path, **options: Any) -> ColBERT:
    return ColBERT.from_pretrained(folder, dtype="float32", **options)


def assert_same_rows(model: ColBERT, folder: Path, texts: list[str] = TEXTS) -> None:
    """The rows of `model` and those that sentence-transformers gives with the folder."""
    theirs = library.MultiVectorEncoder(str(folder), device="cpu")
    pairs = zip(
        model.encode_documents(texts) + model.encode_queries(texts),
        theirs.encode_document(texts) + theirs.encode_query(texts),
        strict=True,
    )
    for ours, other in pairs:
        np.testing.assert_allclose(ours, other.numpy(), atol=1e-5)


def assert_same_as_theirs(folder: Path, texts: list[str] = TEXTS) -> ColBERT:
    model = load(folder)
    assert_same_rows(model, folder, texts)
    return model


def test_what_we_write_is_read(tmp_path: Path) -> None:
    model = load(write_stanford(tmp_path / "a", metadata=METADATA))
    model.save_pretrained(tmp_path / "b")
    assert_same_rows(
        model, tmp_path / "b", ["The sky is blue.", "why", "late interaction search engine, plaid"]
    )


def dense(rows: int = DIM, columns: int = HIDDEN) -> Any:
    torch.manual_seed(1)
    return Dense(columns, rows, activation_function=torch.nn.Identity(), **TOKENS)


def save(folder: Path, *behind: Any, prompts: Any = None, **options: Any) -> Path:
    """A folder of theirs: the tiny encoder and what comes behind it."""
    encoder = Transformer(str(write_plain(folder / "plain")), **options)
    model = library.MultiVectorEncoder(modules=[encoder, *behind], device="cpu", prompts=prompts)
    model.save_pretrained(str(folder / "saved"), create_model_card=False)
    return folder / "saved"


def test_what_a_multi_vector_encoder_saves(tmp_path: Path) -> None:
    model = load(write_stanford(tmp_path / "a", metadata={"doc_maxlen": 20}))
    model.save_pretrained(tmp_path / "b")
    theirs = library.MultiVectorEncoder(str(tmp_path / "b"), device="cpu")
    theirs.save_pretrained(str(tmp_path / "c"), create_model_card=False)
    assert_same_as_theirs(tmp_path / "c")


def test_without_a_dense_rows_are_the_encoders(tmp_path: Path) -> None:
    skip, prompts = MultiVectorMask(["sky"]), {"query": "why ", "document": "plaid "}
    model = assert_same_as_theirs(
        save(tmp_path, Normalize(**TOKENS), skip, prompts=prompts, query_length=9)
    )
    assert (model.dim, model.config.query_length) == (HIDDEN, 9)
    assert (model.config.query_prompt, model.config.skiplist_words) == ("why ", ("sky",))
    model.save_pretrained(tmp_path / "again")
    assert_same_as_theirs(tmp_path / "again")


@pytest.mark.parametrize(("options", "length"), [({}, 64), ({"max_seq_length": 24}, 24)])
def test_lengths_that_are_not_pinned(tmp_path: Path, options: dict[str, int], length: int) -> None:
    folder = save(tmp_path, dense(), Normalize(**TOKENS), MultiVectorMask(), **options)
    model = assert_same_as_theirs(folder)
    assert (model.config.query_length, model.config.document_length) == (length, length)


def test_normalize_comes_last(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"modules\.json: without a Normalize module"):
        load(save(tmp_path / "none", dense(), MultiVectorMask()))
    between = (dense(24), Normalize(**TOKENS), dense(DIM, 24), Normalize(**TOKENS))
    with pytest.raises(CheckpointError, match=r"Dense' is not supported behind a Normalize"):
        load(save(tmp_path / "between", *between, MultiVectorMask()))


@pytest.mark.parametrize("lower", [True, False])
def test_lower_case_of_the_settings(tmp_path: Path, lower: bool) -> None:
    folder = write_pylate(tmp_path / "a", query_length=12, document_length=20)
    tokens = json.loads((folder / "tokenizer.json").read_text())
    tokens["normalizer"]["lowercase"] = False
    write_json(folder / "tokenizer.json", tokens)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": lower})
    model = assert_same_as_theirs(folder)
    first, second = model.encode_documents(["The SKY", "the sky"])
    assert np.array_equal(first, second) == lower
    model.save_pretrained(tmp_path / "b")
    np.testing.assert_array_equal(load(tmp_path / "b").encode_documents(["The SKY"])[0], first)
