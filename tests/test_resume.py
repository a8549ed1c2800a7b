"""A build that is stopped goes on where it was."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colbert_fast.indexing import resume
from colbert_fast.storage import transactions
from fakes import WordModel
from synthetic import files, make, sentences


class Counting(WordModel):
    """Counts the texts it encodes; stops at one, like a process that is interrupted."""

    config: dict[str, int]  # only some tests give it one

    def __init__(self, stop_at: int | None = None) -> None:
        self.encoded = 0
        self._stop_at = stop_at

    def encode_documents(self, texts: Iterable[str], **options: Any) -> Iterator[np.ndarray]:
        for row in super().encode_documents(texts, **options):
            if self.encoded == self._stop_at:
                raise KeyboardInterrupt
            self.encoded += 1
            yield row


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "_WINDOW", 10)


@pytest.fixture
def texts(rng: np.random.Generator) -> list[str]:
    return sentences(rng, 75)


def stopped(path: Path, texts: Sequence[str], at: int, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(path, texts, model=Counting(at), resume=True, **options)


@pytest.mark.parametrize("pool_factor", [1, 2])
def test_only_the_rest_is_encoded(tmp_path: Path, texts: list[str], pool_factor: int) -> None:
    stopped(tmp_path / "a", texts, 47, pool_factor=pool_factor)
    assert [each.name for each in tmp_path.iterdir()] == ["a.building"]
    model = Counting()
    index = make(tmp_path / "a", iter(texts), model=model, resume=True, pool_factor=pool_factor)
    assert model.encoded == 35
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    whole = make(tmp_path / "b", texts, model=Counting(), pool_factor=pool_factor)
    # SQLite counts the changes of a file in its header, so its bytes are not compared.
    arrays, others = (
        {name: data for name, data in files(each.path).items() if name.endswith(".npy")}
        for each in (index, whole)
    )
    assert arrays == others
    assert index.ids == whole.ids
    index.verify()


def test_a_replacement(tmp_path: Path, texts: list[str]) -> None:
    make(tmp_path / "a", texts[:5], model=Counting())
    stopped(tmp_path / "a", texts, 47, overwrite=True)
    model = Counting()
    index = make(tmp_path / "a", texts, model=model, resume=True, overwrite=True)
    assert (model.encoded, len(index)) == (35, 75)
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    assert not (tmp_path / "a" / "encoded").exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_an_interrupt_in_the_last_step_keeps_what_is_encoded(
    tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    options: Any = {"resume": True, "overwrite": replaced}
    if replaced:
        make(tmp_path / "a", texts[:5], model=Counting())
    with monkeypatch.context() as patch:
        patch.setattr(transactions, "_move_into_place", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "a", texts, model=Counting(), **options)
    model = Counting()
    index = make(tmp_path / "a", texts, model=model, **options)
    assert (model.encoded, len(index)) == (0, 75)
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    assert not (tmp_path / "a" / "encoded").exists()


def changed(texts: list[str]) -> list[str]:
    return [*texts[:12], "another", *texts[13:]]


def test_texts_that_have_changed_are_encoded(tmp_path: Path, texts: list[str]) -> None:
    stopped(tmp_path / "a", texts, 47)
    model = Counting()
    index = make(tmp_path / "a", changed(texts), model=model, resume=True)
    assert model.encoded == 45
    assert index.search("another", k=1)[0].id == 12


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_damaged_files_are_encoded_again(
    tmp_path: Path, texts: list[str], damage: Callable[[Path], None]
) -> None:
    stopped(tmp_path / "a", texts, 47)
    damage(tmp_path / "a.building" / "encoded" / "000002.npz")
    model = Counting()
    assert len(make(tmp_path / "a", texts, model=model, resume=True)) == 75
    assert model.encoded == 45


def test_other_weights_encode_everything(tmp_path: Path, texts: list[str]) -> None:
    class Other(Counting):
        def fingerprint(self) -> str:
            return "other"

    stopped(tmp_path / "a", texts, 47)
    model = Other()
    make(tmp_path / "a", texts, model=model, resume=True)
    assert model.encoded == 75


def test_other_settings_of_the_model_encode_everything(tmp_path: Path, texts: list[str]) -> None:
    first, same, longer = Counting(47), Counting(), Counting()
    for model, length in ((first, 180), (same, 180), (longer, 300)):
        model.config = {"document_length": length}
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "a", texts, model=first, resume=True)
    shutil.copytree(tmp_path / "a.building", tmp_path / "b.building")
    make(tmp_path / "a", texts, model=same, resume=True)
    make(tmp_path / "b", texts, model=longer, resume=True)
    assert (same.encoded, longer.encoded) == (35, 75)


def test_without_resume_nothing_is_kept_or_used(tmp_path: Path, texts: list[str]) -> None:
    stopped(tmp_path / "a", texts, 47)
    model = Counting()
    make(tmp_path / "a", texts, model=model)
    assert model.encoded == 75
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "b", texts, model=Counting(30))
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_source_shorter_than_before(tmp_path: Path, texts: list[str]) -> None:
    stopped(tmp_path / "a", texts, 47)
    model = Counting()
    index = make(tmp_path / "a", itertools.islice(texts, 25), model=model, resume=True)
    assert (len(index), model.encoded) == (25, 5)
