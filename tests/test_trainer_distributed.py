"""Two processes take the steps that one takes on the same batches."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

torch: Any = pytest.importorskip("torch", reason="torch is an extra")
pytest.importorskip("accelerate", reason="accelerate is an extra")

from colbert_fast.training import distributed  # noqa: E402
from colbert_fast.training.config import TrainingConfig  # noqa: E402
from colbert_fast.training.trainer import train  # noqa: E402
from training_runs import load_model, make_examples, run, weights, write_model  # noqa: E402

# A large epsilon, since Adam's updates are signs where a gradient is nothing but rounding.
OPTIONS: dict[str, Any] = {
    "losses": {"kl": 1.0, "in_batch": 1.0, "xtr": 1.0},
    "batch_size": 4,
    "max_steps": 4,
    "learning_rate": 0.1,
    "adam_epsilon": 1.0,
}


@pytest.mark.parametrize("cache", [None, 2])
def test_two_processes_are_one(cache: int | None, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    options = {**OPTIONS, "gradient_cache": cache}
    model = load_model(folder, dropout=0.0)
    train(model, make_examples(), tmp_path / "one", TrainingConfig(**options), progress=False)
    done = run(folder, tmp_path / "two", processes=2, **options, dropout=0.0)
    assert done.returncode == 0, done.stderr
    before, two = weights(folder), weights(tmp_path / "two" / "final")
    moved = 0.0
    for key, one in model.state_dict().items():
        torch.testing.assert_close(two[key], one, rtol=1e-4, atol=1e-6, msg=key)
        moved = max(moved, float((one - before[key]).abs().max()))
    assert moved > 1e-3


def test_an_incoming_gradient_is_not_written() -> None:
    gradient = torch.arange(6.0).view(3, 2)
    before = gradient.clone()
    with mock.patch.object(distributed.dist, "all_reduce", lambda tensor: tensor.mul_(2)):
        own, _ = distributed._GatherRows.backward(SimpleNamespace(start=1, size=2), gradient)
    assert torch.equal(own, 2 * before[1:])
    assert torch.equal(gradient, before)
