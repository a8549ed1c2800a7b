"""Indexes built apart with the same centroids are one index when they are merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colbert_fast.errors import IndexExistsError
from colbert_fast.index import Index
from fakes import WordModel
from synthetic import clustered, make


@pytest.fixture
def documents(rng: np.random.Generator) -> list[np.ndarray]:
    return clustered(rng, 150)


def arrays(index: Index) -> dict[str, bytes]:
    found = {each.name: each.read_bytes() for each in index.path.glob("segment-*/*.npy")}
    return found | {each.name: each.read_bytes() for each in index.path.glob("codec-*/*.npy")}


@pytest.mark.parametrize("codec", ["default", "plaid", "float16"])
def test_merged_parts_are_what_one_build_gives(
    tmp_path: Path, documents: list[np.ndarray], codec: str
) -> None:
    first = make(tmp_path / "0", documents[:50], num_centroids=32, codec=codec)
    parts = [first.path]
    for start in (50, 100):
        part = make(
            tmp_path / str(start),
            documents[start : start + 50],
            ids=range(start, start + 50),
            codec_from=first.path,
        )
        parts.append(part.path)
    merged = Index.merge(tmp_path / "merged", parts)
    whole = make(tmp_path / "whole", documents, codec_from=str(first.path))
    assert arrays(merged) == arrays(whole)
    assert merged.ids == whole.ids
    assert merged.search(documents[:9], k=20) == whole.search(documents[:9], k=20)
    merged.verify()
    merged.add(documents[:1], progress=False)
    assert merged.ids[-1] == 150


def test_deleted_documents_are_left_out(tmp_path: Path, documents: list[np.ndarray]) -> None:
    first = make(tmp_path / "a", documents[:50], num_centroids=16)
    other = make(tmp_path / "b", documents[50:80], ids=range(50, 80), codec_from=first.path)
    other.delete([51])
    other.add(documents[80:90], progress=False)
    first.delete([0])
    merged = Index.merge(tmp_path / "m", [first.path, other.path])
    assert merged.ids == (*range(1, 51), *range(52, 90))


def test_a_part_with_more_centroids(
    tmp_path: Path, documents: list[np.ndarray], rng: np.random.Generator
) -> None:
    first = make(tmp_path / "a", documents[:100], num_centroids=16)
    other = make(tmp_path / "b", documents[100:], ids=range(100, 150), codec_from=first.path)
    other.add(clustered(rng, 300, topics=5), progress=False)
    assert other.info()["centroids"] > 16
    merged = Index.merge(tmp_path / "m", [first.path, other.path])
    assert len(merged) == 450
    assert merged.search(documents[3], k=1)[0].id == 3
    assert merged.search(documents[120], k=1)[0].id == 120


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_part_without_a_model(
    tmp_path: Path, documents: list[np.ndarray], order: tuple[int, int]
) -> None:
    model: Any = WordModel()
    texts = make(tmp_path / "a", ["sky", "sea"], model=model)
    rows = [each[:, : WordModel.dim] for each in documents[:9]]
    other = make(tmp_path / "b", rows, ids=range(2, 11), codec_from=texts.path)
    paths = (texts.path, other.path)
    merged = Index.merge(tmp_path / "m", [paths[at] for at in order])
    assert (merged.manifest.model, merged.manifest.model_fingerprint) == ("words", "words")


def test_parts_that_do_not_fit(tmp_path: Path, documents: list[np.ndarray]) -> None:
    first = make(tmp_path / "a", documents[:50], num_centroids=16)
    apart = make(tmp_path / "b", documents[50:], num_centroids=16, ids=range(50, 150))
    twin = make(tmp_path / "c", documents[50:60], ids=range(49, 59), codec_from=first.path)
    with pytest.raises(ValueError, match=r"have other centroids.* codec_from="):
        Index.merge(tmp_path / "m", [first.path, apart.path])
    with pytest.raises(ValueError, match="ids must be unique: 49"):
        Index.merge(tmp_path / "m", [first.path, twin.path])
    with pytest.raises(ValueError, match="there are none to merge"):
        Index.merge(tmp_path / "m", [])
    assert not list(tmp_path.glob("m*"))
    with pytest.raises(IndexExistsError):
        Index.merge(tmp_path / "a", [first.path])
    with pytest.raises(ValueError, match="dim is 8, other documents have 64"):
        make(tmp_path / "m", [np.eye(8, dtype=np.float32)], codec_from=first.path)


def test_merging_into_one_of_the_parts(tmp_path: Path, documents: list[np.ndarray]) -> None:
    first = make(tmp_path / "a", documents[:50], num_centroids=16)
    other = make(tmp_path / "b", documents[50:], ids=range(50, 150), codec_from=first.path)
    merged = Index.merge(first.path, [first.path, other.path], overwrite=True)
    assert len(merged) == 150
    merged.verify()
