"""Two processes take the steps that one takes on the same batches."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
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
from colbert_fast.training.validation import METRIC  # noqa: E402
from training_runs import (  # noqa: E402
    load_model,
    make_examples,
    run,
    weights,
    with_twins,
    write_beir,
    write_model,
)

# A large epsilon, since Adam's updates are signs where a gradient is nothing but rounding; no
# clipping, which would hide a factor on all gradients.
OPTIONS: dict[str, Any] = {
    "losses": {"kl": 1.0, "in_batch": 1.0, "xtr": 1.0},
    "batch_size": 4,
    "max_steps": 4,
    "learning_rate": 0.01,
    "adam_epsilon": 1.0,
    "max_grad_norm": 0.0,
}
OWN_ONLY = {"losses": {"kl": 1.0, "pairwise": 1.0}}


def assert_two_are_one(tmp_path: Path, *, twins: bool = False, **changes: Any) -> None:
    folder = write_model(tmp_path / "model")
    options = {**OPTIONS, **changes}
    model = load_model(folder, dropout=0.0)
    examples = with_twins(make_examples()) if twins else make_examples()
    train(model, examples, tmp_path / "one", TrainingConfig(**options), progress=False)
    options["twins"] = twins
    done = run(folder, tmp_path / "two", processes=2, **options, dropout=0.0)
    assert done.returncode == 0, done.stderr
    before, two = weights(folder), weights(tmp_path / "two" / "final")
    moved = 0.0
    for key, one in model.state_dict().items():
        torch.testing.assert_close(two[key], one, rtol=1e-4, atol=1e-6, msg=key)
        moved = max(moved, float((one - before[key]).abs().max()))
    assert moved > 1e-3


@pytest.mark.parametrize("changes", [{}, {"gradient_cache": 2}, {"twins": True}, OWN_ONLY])
def test_two_processes_are_one(changes: dict[str, Any], tmp_path: Path) -> None:
    assert_two_are_one(tmp_path, **changes)


def test_two_processes_evaluate_as_one(tmp_path: Path) -> None:
    pytest.importorskip("ir_measures", reason="ir_measures is an extra")
    beir = tmp_path / "beir"
    beir.mkdir()
    write_beir(beir, make_examples())
    assert_two_are_one(tmp_path, **OWN_ONLY, eval_folder=str(beir), save_steps=4)
    one, two = (log_of(tmp_path / name, METRIC) for name in ("one", "two"))
    assert len(one) == 1
    assert one == pytest.approx(two, abs=0.02)


def log_of(run: Path, name: str) -> list[float]:
    text = (run / "checkpoint-4" / "trainer_state.json").read_text("utf-8")
    return [entry[name] for entry in json.loads(text)["log_history"] if name in entry]


def test_two_processes_log_what_one_does(tmp_path: Path) -> None:
    assert_two_are_one(tmp_path, logging_steps=2, save_steps=4)
    for name in ("loss", "loss_kl", "loss_in_batch", "loss_xtr"):
        one, two = (log_of(tmp_path / run, name) for run in ("one", "two"))
        assert len(one) == 2
        assert one == pytest.approx(two, rel=1e-3), name


def test_a_process_leaves_its_group_before_it_ends(tmp_path: Path) -> None:
    script = f"""
        import atexit, torch.distributed as dist
        from colbert_fast.training.distributed import leave_at_exit
        atexit.register(lambda: print("in a group:", dist.is_initialized()))
        store = dist.FileStore({str(tmp_path / "store")!r}, 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        leave_at_exit()
        leave_at_exit()
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "in a group: False\n"


def test_an_evaluation_may_take_hours() -> None:
    with (
        mock.patch.object(distributed, "processes", return_value=2),
        mock.patch.object(distributed.dist, "new_group", return_value="a day") as made,
        mock.patch.object(distributed.dist, "broadcast_object_list") as sent,
        mock.patch.object(distributed, "_patient_group", distributed._patient_group.__wrapped__),
    ):
        distributed.broadcast(0.5)
    assert made.call_args.kwargs["timeout"].total_seconds() >= 12 * 3600
    assert sent.call_args.kwargs["group"] == "a day"


def test_an_incoming_gradient_is_not_written() -> None:
    gradient = torch.arange(6.0).view(3, 2)
    before = gradient.clone()
    with mock.patch.object(distributed.dist, "all_reduce", lambda tensor: tensor.mul_(2)):
        own, _ = distributed._GatherRows.backward(SimpleNamespace(start=1, size=2), gradient)
    assert torch.equal(own, 2 * before[1:])
    assert torch.equal(gradient, before)
