"""TrainingConfig: what cannot be is refused, by name."""

from __future__ import annotations

from typing import Any

import pytest

from colbert_fast.training.config import TrainingConfig


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("batch_size", 0, "at least 1"),
        ("batch_size", True, "want int"),
        ("nway", 1, "at least 2"),
        ("epochs", 0, "above 0"),
        ("epochs", float("nan"), "above 0"),
        ("learning_rate", "1e-5", "want float"),
        ("learning_rate", -1.0, "above 0"),
        ("warmup_steps", -1, "at least 0"),
        ("weight_decay", -0.1, "0 or more"),
        ("schedule", "stairs", "'linear' or 'cosine' or 'constant'"),
        ("normalize", "max", "'none' or 'minmax'"),
        ("losses", {"mse": 1.0}, "got 'mse'"),
        ("losses", {"kl": 0.0}, "weight of 'kl'"),
        ("losses", {}, "at least one"),
        ("losses", ["kl"], "want Mapping"),
        ("frozen", "backbone.*", "want tuple"),
        ("frozen", (1,), "want tuple"),
        ("matryoshka", (12,), "multiples of 8"),
        ("quantization_bits", 5, "want one of"),
        ("quantization_fraction", 1.5, "at most 1"),
        ("pool_factor", 0, "at least 1"),
        ("contrastive_temperature", 0.0, "above 0"),
        ("xtr_k", 0, "at least 1"),
        ("dropout", 1.0, "below 1"),
        ("group_size", 5, "batch_size=32 is no multiple of 5"),
        ("group_size", 4, "in_batch know one positive"),
        ("eval_folder", "/nowhere", "no such folder"),
        ("average_best", 3, "BEIR folder"),
        ("eval_steps", 3, "BEIR folder"),
    ],
)
def test_what_cannot_be(name: str, value: Any, wanted: str) -> None:
    with pytest.raises((TypeError, ValueError), match=wanted) as caught:
        TrainingConfig(**{name: value})
    place = "eval_folder" if name in ("average_best", "eval_steps") else name
    assert str(caught.value).startswith(f"{place}: ")


def test_pairs_go_without_groups() -> None:
    with pytest.raises(ValueError, match="group_size: the losses pairwise know one positive"):
        TrainingConfig(losses={"kl": 1.0, "pairwise": 1.0}, group_size=4)


def test_checkpoints_are_what_is_evaluated(tmp_path: Any) -> None:
    folder = str(tmp_path)
    with pytest.raises(ValueError, match="save_steps: must be given"):
        TrainingConfig(eval_folder=folder)
    with pytest.raises(ValueError, match="eval_steps: want a multiple of save_steps=4"):
        TrainingConfig(eval_folder=folder, save_steps=4, eval_steps=6)
    assert TrainingConfig(eval_folder=folder, save_steps=4, eval_steps=8).eval_steps == 8


def test_a_recipe_becomes_a_configuration() -> None:
    given = {"losses": {"kl": 2}, "matryoshka": [32, 64], "max_steps": 5, "epochs": 2}
    config = TrainingConfig.from_dict(given)
    assert config == TrainingConfig(losses={"kl": 2}, matryoshka=(32, 64), max_steps=5, epochs=2)


def test_unknown_keys_of_a_recipe() -> None:
    with pytest.raises(
        ValueError, match=r"unknown key 'learnin_rate'; did you mean 'learning_rate'"
    ):
        TrainingConfig.from_dict({"learnin_rate": 1.0})
    with pytest.raises(ValueError, match="unknown key 'zzz'; known: losses"):
        TrainingConfig.from_dict({"zzz": 1})
