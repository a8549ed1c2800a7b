"""A cross-encoder made of a plain encoder, and of one that was killed on the way."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is an extra")
for package in ("accelerate", "datasets", "sentence_transformers"):
    pytest.importorskip(package, reason=f"{package} is an extra")

from safetensors.torch import load_file, save_file  # noqa: E402

from colbert_fast.training.cross_encoder import CrossEncoderTeacher  # noqa: E402
from colbert_fast.training.data import Example, NWay, TrainingData  # noqa: E402
from colbert_fast.training.train_teacher import train_teacher  # noqa: E402
from tiny_models import WORDS, write_plain  # noqa: E402


def make_data(examples: int = 24, nway: int = 3) -> TrainingData:
    """Positives are made of other words than negatives."""
    rng = random.Random(0)
    half = len(WORDS) // 2
    queries = {str(number): " ".join(rng.sample(WORDS, 3)) for number in range(examples)}
    good = {f"+{name}": " ".join(rng.sample(WORDS[:half], 4)) for name in queries}
    bad = {f"-{name}": " ".join(rng.sample(WORDS[half:], 4)) for name in queries}
    tuples = [NWay(name, (f"+{name}", *rng.sample([*bad], nway - 1))) for name in queries]
    return TrainingData(queries, {**good, **bad}, tuples)


OPTIONS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 4,
    "accumulation_steps": 2,
    "learning_rate": 1e-3,
    "max_length": 24,
    "dtype": "float32",
    "progress": False,
}


@pytest.fixture(autouse=True)
def _keep_random_states() -> Iterator[None]:
    """The trainer seeds every generator there is."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_plain(tmp_path / "base")


@pytest.mark.parametrize("loss", ["listwise", "binary"])
def test_training_teaches_and_says_nothing(
    tmp_path: Path, base: Path, loss: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    data = make_data()
    capfd.readouterr()
    out = tmp_path / "teacher"
    teacher = train_teacher(base, data, out, loss=loss, **{**OPTIONS, "epochs": 20})
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert not (tmp_path / "teacher.partial").exists()
    pairs = [(each.query, document) for each in data for document in each.documents]
    scores = teacher(pairs).reshape(len(data), -1)
    assert np.mean(scores.argmax(1) == 0) > 0.8  # 1 / 3 by chance
    loaded = CrossEncoderTeacher(out, dtype="float32")
    np.testing.assert_allclose(loaded(pairs), scores.ravel(), atol=1e-6)
    assert loaded.fingerprint == teacher.fingerprint
    assert loaded.model.max_seq_length == 24


class Dying(Sequence[Example]):
    """Data that end the run after some examples."""

    def __init__(self, data: TrainingData, most: int) -> None:
        self.data, self.left = data, most

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.data[index]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_stopped_run_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, base: Path
) -> None:
    data, options = make_data(), {**OPTIONS, "save_steps": 2}
    train_teacher(base, data, tmp_path / "whole", **options)
    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        train_teacher(base, Dying(data, 36), out, **options)  # in the second epoch
    assert not out.exists()
    half = tmp_path / "stopped.partial" / "checkpoint-99"
    half.mkdir()
    (half / "trainer_state.json").write_text('{"epo')
    counted = Dying(data, 1000)
    train_teacher(base, counted, out, **options)
    assert 1000 - counted.left < 48, "it went on from a checkpoint"
    whole, found = weights(tmp_path / "whole"), weights(out)
    assert whole.keys() == found.keys()
    for key in whole:
        assert torch.equal(whole[key], found[key]), key


def test_the_seed_decides(tmp_path: Path, base: Path) -> None:
    data = make_data()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_teacher(base, data, tmp_path / name, seed=seed, **OPTIONS)
    a, b, c = (weights(tmp_path / name)["classifier.weight"] for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_what_cannot_be_is_refused(tmp_path: Path, base: Path) -> None:
    data = make_data()
    with pytest.raises(FileExistsError, match="base already exists"):
        train_teacher(base, data, base)
    out = tmp_path / "teacher"
    with pytest.raises(ValueError, match="loss: want 'listwise' or 'binary', got 'mse'"):
        train_teacher(base, data, out, loss="mse")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="device: the trainer takes every visible device"):
        train_teacher(base, data, out, device="cpu:0")
    with pytest.raises(ValueError, match="data: no examples"):
        train_teacher(base, [], out)
    with pytest.raises(ValueError, match="batch_size: want an int of at least 1, got 0"):
        train_teacher(base, data, out, **{**OPTIONS, "batch_size": 0})
    with pytest.raises(KeyboardInterrupt):
        train_teacher(base, Dying(data, 3), out, **OPTIONS)
    with pytest.raises(ValueError, match=r"were made with learning_rate 0.001; remove the folder"):
        train_teacher(base, data, out, **{**OPTIONS, "learning_rate": 1e-4})


def test_checkpoints_of_other_data_or_weights_are_refused(tmp_path: Path, base: Path) -> None:
    data, out = make_data(), tmp_path / "teacher"
    with pytest.raises(KeyboardInterrupt):
        train_teacher(base, Dying(data, 3), out, **OPTIONS)
    turned = [each._replace(document_ids=each.document_ids[::-1]) for each in data.tuples]
    with pytest.raises(ValueError, match=r"were made with first_and_last '\w+'; remove the folder"):
        train_teacher(base, TrainingData(data.queries, data.documents, turned), out, **OPTIONS)
    state = load_file(base / "model.safetensors")
    save_file(
        {key: value + 1 for key, value in state.items()},
        base / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ValueError, match=r"were made with fingerprint '[\w ]+'; remove the folder"):
        train_teacher(base, data, out, **OPTIONS)
