"""What is saved of a damaged index."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from colbert_fast.errors import IndexFormatError
from colbert_fast.index import Index
from synthetic import clustered, make


@pytest.fixture
def documents(rng: np.random.Generator) -> list[np.ndarray]:
    return clustered(rng, 150)


@pytest.fixture
def index(tmp_path: Path, documents: list[np.ndarray]) -> Index:
    """Two segments, of 100 and 50 documents, one of each deleted."""
    index = make(tmp_path / "a", documents[:100], num_centroids=32)
    index.add(documents[100:], progress=False)
    index.delete([7, 120])
    return index


def damage(index: Index, pattern: str) -> None:
    for path in index.path.glob(pattern):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x55
        path.write_bytes(data)


def cut(index: Index, pattern: str) -> None:
    for path in index.path.glob(pattern):
        path.write_bytes(path.read_bytes()[:-5])


def test_nothing_to_repair(index: Index) -> None:
    assert Index.repair(index.path) == ((), 0, 0, ())
    assert not index.refresh()


@pytest.mark.parametrize("harm", [damage, cut, lambda i, p: [e.unlink() for e in i.path.glob(p)]])
def test_what_is_derived_is_made_anew(
    index: Index, documents: list[np.ndarray], harm: object
) -> None:
    expected = index.search(documents[:5], k=150)
    harm(index, "segment-*/list_*.npy")  # type: ignore[operator]
    harm(index, "segment-000000/inverse_norms.npy")  # type: ignore[operator]
    report = Index.repair(index.path)
    assert len(report.rebuilt) == len(report.damage) == 7
    assert (report.restored, report.lost) == (0, 0)
    with Index.open(index.path) as repaired:
        repaired.verify()
        assert repaired.search(documents[:5], k=150) == expected
        assert len(repaired) == 148
    assert not (index.path / "segment-000000").exists()


@pytest.mark.parametrize("name", ["codes.npy", "residuals.npy", "doclens.npy", "documents.sqlite"])
def test_sound_segments_are_saved(index: Index, documents: list[np.ndarray], name: str) -> None:
    damage(index, f"segment-000000/{name}")
    with pytest.raises(IndexFormatError, match=name.replace(".", r"\.")):
        Index.open(index.path).verify()
    report = Index.repair(index.path)
    assert (report.rebuilt, report.restored, report.lost) == ((), 0, 99)
    assert name in report.damage[0]
    with Index.open(index.path) as repaired:
        repaired.verify()
        assert repaired.ids == (*range(100, 120), *range(121, 150))
        assert repaired.search(documents[110], k=1)[0].id == 110
        repaired.add(documents[:3], progress=False)
    assert (index.path / "lost-segment-000000").is_dir()


def test_a_segment_whose_folder_is_gone(index: Index) -> None:
    shutil.rmtree(index.path / "segment-000000")
    assert Index.repair(index.path).lost == 99
    assert len(Index.open(index.path)) == 49


def test_lost_marks(index: Index) -> None:
    damage(index, "deleted-*.npy")
    report = Index.repair(index.path)
    assert (report.restored, report.lost) == (2, 0)
    with Index.open(index.path) as repaired:
        repaired.verify()
        assert repaired.ids == tuple(range(150))


def test_a_document_that_was_replaced_stays_so(tmp_path: Path, documents: list[np.ndarray]) -> None:
    index = make(tmp_path / "r", documents[:100], num_centroids=16)
    index.upsert(documents[100:102], ids=[3, 4], progress=False)
    index.delete([9])
    damage(index, "deleted-*.npy")
    report = Index.repair(index.path)
    assert (report.restored, report.lost) == (1, 0)
    with Index.open(index.path) as repaired:
        repaired.verify()
        assert sorted(repaired.ids) == [*range(100)]
        assert repaired.search(documents[100], k=1)[0].id == 3
        repaired.compact(progress=False)


def test_a_file_that_cannot_be_read_is_not_damaged(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> tuple[int, ...]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("colbert_fast.storage.files._crc32s", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        Index.repair(index.path)
    monkeypatch.undo()
    Index.open(index.path).verify()


def test_a_damaged_tuning_goes(index: Index) -> None:
    (index.path / "tuning.json").write_text("{")
    assert "tuning.json" in Index.repair(index.path).damage[0]
    Index.open(index.path).verify()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("codec-*/weights.npy", r"weights\.npy: corrupt .* no vector can be read: build again"),
        ("manifest.json", r"manifest\.json: does not match its checksum"),
    ],
)
def test_what_cannot_be_repaired(index: Index, pattern: str, message: str) -> None:
    damage(index, pattern)
    with pytest.raises(IndexFormatError, match=message):
        Index.repair(index.path)
