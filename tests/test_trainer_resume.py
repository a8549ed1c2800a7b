"""A run that was killed ends with the bits of one that was not; a checkpoint is whole or absent."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is an extra")
pytest.importorskip("accelerate", reason="accelerate is an extra")

from safetensors import SafetensorError  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

from colbert_fast.model import ColBERT, device  # noqa: E402
from colbert_fast.storage.lock import LOCK, writer_lock  # noqa: E402
from colbert_fast.training import checkpoints  # noqa: E402
from colbert_fast.training.config import TrainingConfig  # noqa: E402
from colbert_fast.training.trainer import train  # noqa: E402
from training_runs import (  # noqa: E402
    load_model,
    make_examples,
    one_thread,
    run,
    weights,
    write_model,
)

# Six steps an epoch: step 9 is in the middle of the second. Dropout is on.
OPTIONS: dict[str, Any] = {
    "batch_size": 4,
    "max_steps": 14,
    "learning_rate": 1e-3,
    "warmup_steps": 3,
    "save_steps": 2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"))


def train_here(folder: Path, output: Path, *, resume: bool = False, **options: Any) -> Any:
    config = TrainingConfig(**{**OPTIONS, **options})
    return train(load_model(folder), make_examples(), output, config, resume=resume, progress=False)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def straight(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The weights that a run ends with which nothing happens to."""
    output = tmp_path_factory.mktemp("straight") / "run"
    train_here(folder, output)
    return weights(output / "final")


def assert_equal(output: Path, straight: dict[str, Any]) -> None:
    for key, value in weights(output / "final").items():
        assert torch.equal(value, straight[key]), key


def names(output: Path) -> list[str]:
    found = (path.name for path in output.iterdir() if path.name != LOCK)
    return sorted(name for name in found if not name.startswith("."))


def test_killed_and_resumed(folder: Path, straight: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "run"
    killed = run(folder, output, **OPTIONS, kill_at=9)
    assert killed.returncode == -9, killed.stderr
    assert names(output) == ["checkpoint-8"]
    train_here(folder, output, resume=True)
    assert names(output) == ["checkpoint-14", "final"]
    assert_equal(output, straight)


def test_resumed_at_the_end_of_an_epoch(
    folder: Path, straight: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    assert run(folder, output, **OPTIONS, kill_at=7).returncode == -9
    assert names(output) == ["checkpoint-6"]
    train_here(folder, output, resume=True)
    assert_equal(output, straight)


def test_ctrl_c_and_resumed(folder: Path, straight: dict[str, Any], tmp_path: Path) -> None:
    class InterruptAt(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            if state.global_step == 9:
                raise KeyboardInterrupt

    output, config = tmp_path / "run", TrainingConfig(**OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        train(
            load_model(folder),
            make_examples(),
            output,
            config,
            progress=False,
            callbacks=[InterruptAt()],
        )
    assert names(output) == ["checkpoint-8"]
    train_here(folder, output, resume=True)
    assert_equal(output, straight)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "no space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file: no space left"),
        SafetensorError("I/O error: no space left on device"),
    ],
)
def test_a_checkpoint_that_fails_is_not_there(
    folder: Path, straight: dict[str, Any], tmp_path: Path, error: Exception
) -> None:
    output = tmp_path / "run"
    save = torch.save

    def full_disk(value: Any, path: Any, *rest: Any) -> None:
        if "checkpoint-6" in str(path) and "scheduler" in str(path):
            raise error
        save(value, path, *rest)

    with (
        mock.patch.object(torch, "save", full_disk),
        pytest.raises(OSError, match="no space left"),
    ):
        train_here(folder, output)
    assert names(output) == ["checkpoint-4"]
    train_here(folder, output, resume=True)
    assert_equal(output, straight)


def test_other_errors_are_not_the_disks(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="NCCL"), checkpoints.disk_errors(tmp_path):
        raise RuntimeError("NCCL error: unhandled system error")


def test_a_finished_run_is_only_read(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    first = train_here(folder, output, max_steps=2)

    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (output, *output.rglob("*"))}

    before = state()
    with writer_lock(output):  # needs none
        again = train_here(folder, output, max_steps=2, resume=True)
    assert state() == before
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])


def test_resuming_with_another_configuration(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    train_here(folder, output, max_steps=2)
    with pytest.raises(ValueError, match=r"learning_rate: .* was written with 0.001, got 0.1"):
        train_here(folder, output, max_steps=2, learning_rate=0.1, resume=True)
    train_here(folder, output, max_steps=2, logging_steps=1, resume=True)


def test_resuming_where_nothing_is_begins(folder: Path, tmp_path: Path) -> None:
    train_here(folder, tmp_path / "run", max_steps=2, resume=True)
    assert names(tmp_path / "run") == ["checkpoint-2", "final"]


def test_another_run_is_not_resumed(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    train_here(folder, output, max_steps=2)
    config = TrainingConfig(**{**OPTIONS, "max_steps": 2})
    examples = make_examples()
    first, last = examples[0], examples[-1]
    model = load_model(folder)
    with torch.no_grad():
        model.projection.dense_layers[0].linear.weight[0, 0] += 1
    shorter = ColBERT.from_pretrained(folder, dtype="float32", document_length=20)
    for name, other_model, data in (
        ("examples", None, examples[1:]),
        ("first_and_last", None, [first._replace(query="why"), *examples[1:]]),
        ("first_and_last", None, [*examples[:-1], last._replace(documents=first.documents)]),
        ("first_and_last", None, [*examples[:-1], last._replace(scores=(0.0, 1.0, 2.0))]),
        ("model", model, examples),
        ("model_config", shorter, examples),
    ):
        with pytest.raises(ValueError, match=f"^{name}: .*cannot resume"):
            train(
                other_model or load_model(folder),
                data,
                output,
                config,
                resume=True,
                progress=False,
            )
    # Scores of another type are the same scores.
    same = [each._replace(scores=[np.float64(score) for score in each.scores]) for each in examples]
    train(load_model(folder), same, output, config, resume=True, progress=False)


def test_one_process_at_a_time(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    output.mkdir()
    with writer_lock(output), mock.patch.object(checkpoints, "_PATIENCE", 0.0):
        (output / ".unfinished").mkdir()
        (output / ".unfinished" / "half").touch()
        for resume in (False, True):
            with pytest.raises(TimeoutError, match=r"^output_dir: another process trains in"):
                train_here(folder, output, max_steps=2, resume=resume)
        assert (output / ".unfinished" / "half").exists()
    train_here(folder, output, max_steps=2)
    assert names(output) == ["checkpoint-2", "final"]


def test_auto_is_what_it_was_at_first(folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 2, "dtype": "auto"}
    with mock.patch.object(device, "multiplies_bfloat16", return_value=False):
        train_here(folder, tmp_path / "run", **options)
        train_here(folder, tmp_path / "run", **options, resume=True)
    with (
        mock.patch.object(device, "multiplies_bfloat16", return_value=True),
        pytest.raises(ValueError, match=r"^dtype: .* with 'float32', got 'bfloat16'"),
    ):
        train_here(folder, tmp_path / "run", **options, resume=True)
