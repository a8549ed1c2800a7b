"""What computes the rows: packed BERT against transformers, OpenVINO against torch, its cache."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from colbert_fast.errors import MissingDependencyError
from colbert_fast.index import Index
from colbert_fast.model import ColBERT, device, openvino_runner, packed_bert, runner
from tiny_models import WORDS, make_backbone, write_dense, write_pylate, write_stanford

TEXTS = ["", "the sky is blue", "why plaid ! " * 5, "late interaction", "fast " * 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pylate(tmp_path_factory.mktemp("tiny"), query_length=12, document_length=24)


@pytest.fixture(scope="module")
def exact(folder: Path) -> list[np.ndarray]:
    """Rows by transformers' own forward pass in float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "can_pack", lambda *_: False)
        return encode(ColBERT.from_pretrained(folder, dtype="float32"))


def encode(model: ColBERT) -> list[np.ndarray]:
    return [*model.encode_documents(TEXTS), *model.encode_queries(TEXTS)]


def worst_cosine(rows: list[np.ndarray], exact: list[np.ndarray]) -> float:
    assert [r.shape for r in rows] == [r.shape for r in exact]
    return min(float((a * b).sum(axis=1).min()) for a, b in zip(rows, exact, strict=True))


# Packed BERT


def test_packed_bert_agrees_with_transformers(folder: Path, exact: list[np.ndarray]) -> None:
    model = ColBERT.from_pretrained(folder, dtype="float32")
    assert packed_bert.can_pack(model.backbone, torch.float32)
    for ours, theirs in zip(encode(model), exact, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_packed_bert_in_bfloat16(folder: Path, exact: list[np.ndarray]) -> None:
    model = ColBERT.from_pretrained(folder, dtype="bfloat16")
    if not packed_bert.can_pack(model.backbone, torch.bfloat16):
        pytest.skip("this CPU does not multiply bfloat16")
    assert worst_cosine(encode(model), exact) > 0.99


@pytest.mark.parametrize("settings", [{"hidden_act": "relu"}, {"is_decoder": True}])
def test_other_encoders_are_not_packed(settings: dict[str, Any]) -> None:
    backbone = make_backbone()
    assert packed_bert.can_pack(backbone, torch.float32)
    for name, value in settings.items():
        setattr(backbone.config, name, value)
    assert not packed_bert.can_pack(backbone, torch.float32)
    assert not packed_bert.can_pack(torch.nn.Linear(8, 8), torch.float32)


def test_adapters_are_not_packed() -> None:
    class Adapter(torch.nn.Linear):
        pass

    backbone = make_backbone()
    backbone.encoder.layer[1].attention.self.query = Adapter(32, 32)
    assert not packed_bert.can_pack(backbone, torch.float32)


def test_new_weights_are_seen(folder: Path) -> None:
    model = ColBERT.from_pretrained(folder, dtype="float32")
    before = model.encode_queries("why")[0]
    other = {name: weight * 1.5 for name, weight in model.state_dict().items()}
    model.load_state_dict(other)
    loaded = model.encode_queries("why")[0]
    assert np.abs(loaded - before).max() > 0.01
    with torch.no_grad():
        for weight in model.parameters():
            weight /= 1.5
    model.eval()
    np.testing.assert_allclose(model.encode_queries("why")[0], before, atol=1e-5)


def test_models_that_have_encoded_are_copied_and_pickled(folder: Path) -> None:
    model = ColBERT.from_pretrained(folder, dtype="float32")
    (rows,) = model.encode_queries("why")
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(again.encode_queries("why")[0], rows)


@pytest.mark.parametrize("length", [1, 24])
def test_batches_on_a_cpu_are_small(
    folder: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    model = ColBERT.from_pretrained(folder, dtype="float32")
    monkeypatch.setattr("colbert_fast.model.colbert.CPU_TOKENS", 48)
    sizes = []
    inner = runner.make_runner(model)

    def spy(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        sizes.append(ids.shape)
        return inner(ids, mask)

    model._runner = spy
    model.encode_documents(["why " * length] * 40)
    assert sum(texts for texts, _ in sizes) == 40
    assert all(texts == 1 or texts * tokens <= 48 for texts, tokens in sizes)
    assert max(texts for texts, _ in sizes) > 1


# What cannot be


def test_bad_backend(folder: Path) -> None:
    with pytest.raises(ValueError, match="backend: want 'torch' or 'openvino', got 'onnx'"):
        ColBERT.from_pretrained(folder, backend="onnx")
    with pytest.raises(ValueError, match=r"dtype: want .*'int8', got 'int4'"):
        device.resolve_dtype("int4", torch.device("cpu"), "openvino")
    with pytest.raises(ValueError, match="device: backend='openvino' runs on 'cpu', got 'meta'"):
        device.check_backend("openvino", torch.device("meta"))


def test_missing_package_is_told_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "colbert-fast\[openvino\]"'):
        ColBERT.from_pretrained(folder, backend="openvino")


# OpenVINO


@pytest.fixture(scope="module")
def openvino() -> Any:
    """The package; skips without it."""
    try:
        return openvino_runner.load_openvino()
    except MissingDependencyError:
        pytest.skip("openvino is not installed (extra openvino)")


@pytest.fixture
def cache(openvino: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache."""
    monkeypatch.setattr(openvino_runner, "cache_folder", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / openvino.__name__


@pytest.fixture(scope="module")
def whole(folder: Path, openvino: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 conversion of the model in `folder`; tests of the cache copy it."""
    parent = tmp_path_factory.mktemp(openvino.__name__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_runner, "cache_folder", lambda _: parent)
        load(folder, dtype="float32").encode_queries("why")
    (converted,) = parent.iterdir()
    return converted


def load(folder: Path, **options: Any) -> ColBERT:
    return ColBERT.from_pretrained(folder, backend="openvino", **options)


@pytest.mark.parametrize(("dtype", "cosine"), [("float32", 0.99999), ("int8", 0.99)])
def test_openvino_agrees_with_torch(
    cache: Path, folder: Path, exact: list[np.ndarray], dtype: str, cosine: float
) -> None:
    model = load(folder, dtype=dtype)
    rows = encode(model)
    assert worst_cosine(rows, exact) > cosine
    assert all(row.dtype == np.float32 and row.flags.owndata for row in rows)
    assert len(list(cache.iterdir())) == 1
    for again, row in zip(encode(load(folder, dtype=dtype)), rows, strict=True):
        np.testing.assert_array_equal(again, row)


@pytest.mark.usefixtures("cache")
def test_openvino_is_int8_unless_told(folder: Path) -> None:
    model = load(folder)
    assert model.dtype == "int8"
    assert "backend='openvino', dtype='int8'" in repr(model)


@pytest.mark.usefixtures("cache")
def test_activations_and_biases_of_projections(tmp_path: Path) -> None:
    again = write_pylate(tmp_path / "model", query_length=12, document_length=24)
    weights = {"linear.weight": torch.eye(16, 32), "linear.bias": torch.full((16,), 0.1)}
    write_dense(again / "1_Dense", weights, activation_function="torch.nn.modules.activation.Tanh")
    exact = encode(ColBERT.from_pretrained(again, dtype="float32"))
    assert worst_cosine(encode(load(again, dtype="float32")), exact) > 0.99999


@pytest.mark.usefixtures("cache")
def test_cache_is_used_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = encode(load(folder, dtype="float32"))
    monkeypatch.setattr(openvino_runner, "_convert", None)
    other = load(folder, dtype="float32", document_length=20, query_prefix="")
    assert len(other.encode_queries("why")) == 1
    for again, row in zip(encode(load(folder, dtype="float32")), rows, strict=True):
        np.testing.assert_array_equal(again, row)


@pytest.mark.parametrize("name", ["model.bin", "model.xml", "record.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_damaged_cache_is_made_again(
    cache: Path,
    folder: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    harm: str,
) -> None:
    damaged = cache / whole.name
    shutil.copytree(whole, damaged)
    contents = (damaged / name).read_bytes()
    (damaged / name).unlink()
    if harm == "flip":
        (damaged / name).write_bytes(bytes([contents[0] ^ 1]) + contents[1:])
    elif harm == "truncate":
        (damaged / name).write_bytes(contents[: len(contents) // 2])
    monkeypatch.setattr(
        openvino_runner,
        "_convert",
        lambda _model, _openvino, made, **_: shutil.copytree(whole, made, dirs_exist_ok=True),
    )
    with caplog.at_level(logging.WARNING, openvino_runner.__name__):
        load(folder, dtype="float32").encode_queries("why")
    assert f"{damaged}: damaged; converting the model again" in caplog.text
    assert (damaged / name).read_bytes() == contents
    assert list(cache.iterdir()) == [damaged]


def test_failed_conversion_leaves_nothing(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(openvino_runner, "_convert", fail)
    with pytest.raises(OSError, match="disk full"):
        load(folder).encode_queries("why")
    assert list(cache.iterdir()) == []


def test_other_weights_or_heads_get_other_conversions(
    openvino: Any, folder: Path, tmp_path: Path
) -> None:
    model, other = load(folder), load(write_stanford(tmp_path), document_length=24)
    names = [openvino_runner._name(m, openvino, int8=False) for m in (model, load(folder), other)]
    names.append(openvino_runner._name(model, openvino, int8=True))
    model.backbone.config.num_attention_heads = 4
    names.append(openvino_runner._name(model, openvino, int8=False))
    assert names[0] == names[1]
    assert len(set(names)) == 4


@pytest.mark.usefixtures("cache")
def test_indexes_are_searched_with_either_backend(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 8)) for _ in range(40)]
    with Index.build(
        tmp_path / "a.cf", texts, model=load(folder), nbits=4, progress=False
    ) as index:
        theirs = index.search(texts[7], k=3)
    torch_model = ColBERT.from_pretrained(folder)
    assert torch_model.fingerprint() == load(folder).fingerprint()
    with Index.open(tmp_path / "a.cf", model=torch_model) as index:
        ours = index.search(texts[7], k=3)
    assert ours[0].id == theirs[0].id
    assert ours[0].score == pytest.approx(theirs[0].score, rel=0.02)


@pytest.mark.usefixtures("cache")
def test_no_telemetry(folder: Path, tmp_path: Path) -> None:
    """Importing openvino writes ~/intel before it sends anything."""
    code = (
        "import sys; from colbert_fast.model import ColBERT;"
        f"ColBERT.from_pretrained({str(folder)!r}, backend='openvino').encode_queries('why');"
        "assert sys.modules['openvino_telemetry'] is None"
    )
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    # Continuous integration is what it spares.
    environment = {key: value for key, value in os.environ.items() if key != "CI"}
    subprocess.run([sys.executable, "-c", code], env=environment | home, check=True)
    assert not (tmp_path / "intel").exists()
