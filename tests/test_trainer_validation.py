"""Evaluation on a BEIR folder while training: which checkpoints stay, and what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

torch: Any = pytest.importorskip("torch", reason="torch is an extra")
pytest.importorskip("accelerate", reason="accelerate is an extra")
pytest.importorskip("ir_measures", reason="ir_measures is an extra")

from colbert_fast.training import trainer  # noqa: E402
from colbert_fast.training.config import TrainingConfig  # noqa: E402
from colbert_fast.training.trainer import train  # noqa: E402
from colbert_fast.training.validation import METRIC, validate  # noqa: E402
from training_runs import load_model, make_examples, weights, write_beir, write_model  # noqa: E402

EXAMPLES = make_examples()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_beir(tmp_path_factory.mktemp("beir"), EXAMPLES)


def run(folder: Path, beir: Path, output: Path, **options: Any) -> Any:
    config = TrainingConfig(
        batch_size=4,
        max_steps=6,
        learning_rate=1e-3,
        eval_folder=str(beir),
        **{"save_steps": 2, **options},
    )
    return train(load_model(folder), EXAMPLES, output, config, progress=False)


def steps_of(output: Path) -> list[str]:
    return sorted(path.name for path in output.iterdir() if path.name.startswith("checkpoint"))


def fake(values: list[float]) -> Any:
    return mock.patch.object(trainer, "validate", side_effect=values)


def test_the_best_checkpoint_is_the_result(folder: Path, beir: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with fake([0.2, 0.5, 0.5]):
        model = run(folder, beir, output)
    assert steps_of(output) == ["checkpoint-4", "checkpoint-6"]
    for key, value in weights(output / "checkpoint-4").items():
        assert torch.equal(model.state_dict()[key], value)
        assert torch.equal(weights(output / "final")[key], value)


def test_the_result_is_the_mean_of_the_best(folder: Path, beir: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with fake([0.7, 0.1, 0.4]):
        model = run(folder, beir, output, average_best=2)
    assert steps_of(output) == ["checkpoint-2", "checkpoint-6"]
    first, second = (weights(output / name) for name in steps_of(output))
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, (first[key] + second[key]) / 2, rtol=1e-6, atol=1e-7)


def test_what_is_logged_is_what_the_checkpoint_scores(
    folder: Path, beir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    run(folder, beir, output, save_steps=3, eval_steps=6)
    state = json.loads((output / "checkpoint-6" / "trainer_state.json").read_text("utf-8"))
    ((step, value),) = [
        (entry["step"], entry[METRIC]) for entry in state["log_history"] if METRIC in entry
    ]
    assert step == 6
    assert value == validate(load_model(output / "checkpoint-6"), beir, "dev")
    assert 0.2 < value <= 1


def test_evaluation_does_not_change_the_run(folder: Path, beir: Path, tmp_path: Path) -> None:
    run(folder, beir, tmp_path / "judged", average_best=1)
    config = TrainingConfig(batch_size=4, max_steps=6, learning_rate=1e-3, save_steps=2)
    train(load_model(folder), EXAMPLES, tmp_path / "plain", config, progress=False)
    plain = weights(tmp_path / "plain" / "checkpoint-6")
    for key, value in weights(tmp_path / "judged" / "checkpoint-6").items():
        assert torch.equal(plain[key], value), key


def test_no_more_are_averaged_than_evaluated(folder: Path, beir: Path, tmp_path: Path) -> None:
    for options, count in (({}, 3), ({"save_steps": 4}, 2), ({"eval_steps": 8}, 1)):
        with pytest.raises(ValueError, match=f"^average_best: 4, but 6 steps .* {count} times"):
            run(folder, beir, tmp_path / "run", average_best=4, **options)
    with fake([0.1, 0.3]):
        run(folder, beir, tmp_path / "run", average_best=2, save_steps=4)
