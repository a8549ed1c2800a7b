"""Training on rows as an index holds them: pooled, quantised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is an extra")
pytest.importorskip("accelerate", reason="accelerate is an extra")

from colbert_fast.kernels import ops  # noqa: E402
from colbert_fast.training.config import TrainingConfig  # noqa: E402
from colbert_fast.training.stored import Quantizer, pool_rows  # noqa: E402
from colbert_fast.training.trainer import train  # noqa: E402
from support import unit_vectors  # noqa: E402
from training_runs import (  # noqa: E402
    load_model,
    make_examples,
    one_thread,
    run,
    weights,
    write_model,
)

DOCLENS = torch.tensor([0, 40, 1, 0, 23, 2], dtype=torch.int32)


def test_pooled_rows_are_those_of_an_index(rng: np.random.Generator) -> None:
    rows = torch.from_numpy(unit_vectors(rng, int(DOCLENS.sum()), 16))
    pooled, doclens = pool_rows(rows, DOCLENS, 3)
    means, lengths = ops.pool(rows, DOCLENS, 3)
    assert torch.equal(doclens, lengths)
    assert doclens.dtype == torch.int32
    expected = means / means.norm(dim=1, keepdim=True)
    torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-6)
    assert pool_rows(rows, DOCLENS, 1)[0] is rows


def test_gradients_go_through_the_means(rng: np.random.Generator) -> None:
    rows = torch.from_numpy(unit_vectors(rng, int(DOCLENS.sum()), 16)).requires_grad_()
    pooled, doclens = pool_rows(rows, DOCLENS, 3)
    upstream = torch.from_numpy(rng.standard_normal(pooled.shape).astype(np.float32))
    (ours,) = torch.autograd.grad(pooled, rows, upstream)
    _, lengths, clusters = ops.pool(rows.detach(), DOCLENS, 3, return_clusters=True)
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(DOCLENS.long())
    means = [rows[starts + clusters == i].mean(0) for i in range(int(doclens.sum()))]
    plain = torch.stack([mean / mean.norm() for mean in means])
    (theirs,) = torch.autograd.grad(plain, rows, upstream)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_quantised_rows_and_their_gradient(rng: np.random.Generator) -> None:
    topics = unit_vectors(rng, 20, 16)
    rows = topics[rng.integers(20, size=2000)] + 0.4 * unit_vectors(rng, 2000, 16)
    rows = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()
    doclens = torch.tensor([2000], dtype=torch.int32)
    errors = []
    for nbits in (1, 2, 4):
        quantizer = Quantizer(nbits, first_step=3)
        assert quantizer(2, rows, doclens) is rows
        leaf = rows.clone().requires_grad_()
        stored = quantizer(3, leaf, doclens)
        assert quantizer.codec is not None
        given_back = quantizer.codec.decode(quantizer.codec.encode(rows.numpy()))
        torch.testing.assert_close(stored.detach(), torch.from_numpy(given_back))
        upstream = torch.randn(stored.shape)
        assert torch.equal(torch.autograd.grad(stored, leaf, upstream)[0], upstream)
        errors.append((stored - rows).norm(dim=1).mean().item())
    assert errors[0] > errors[1] > errors[2] > 0


def test_a_quantised_run_resumes_with_its_codec(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    options: dict[str, Any] = {
        "batch_size": 4,
        "max_steps": 8,
        "learning_rate": 1e-3,
        "save_steps": 2,
        "quantization_bits": 2,
        "quantization_fraction": 0.5,
        "pool_factor": 2,
    }

    def train_here(output: Path, **changes: Any) -> dict[str, Any]:
        config = TrainingConfig(**{**options, **changes})
        train(load_model(folder), make_examples(), output, config, resume=True, progress=False)
        return weights(output / "final")

    with one_thread():
        straight = train_here(tmp_path / "straight")
    assert run(folder, tmp_path / "killed", **options, kill_at=7).returncode == -9
    assert (tmp_path / "killed" / "checkpoint-6" / "codec").is_dir()
    with one_thread():
        resumed = train_here(tmp_path / "killed")
    for key, value in straight.items():
        assert torch.equal(resumed[key], value), key
    for without in ({"quantization_bits": None}, {"pool_factor": 1}):
        other = train_here(tmp_path / next(iter(without)), **without)
        assert any(not torch.equal(other[key], value) for key, value in straight.items())
