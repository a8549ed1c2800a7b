"""What a build is said to take, beside what it takes."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from colbert_fast.indexing import build, estimate, ingest
from colbert_fast.indexing.estimate import Estimate
from colbert_fast.indexing.options import BuildOptions
from synthetic import clustered, make


def of(tokens: int = 117_000_000, documents: int = 1_000_000, seconds: float = 7200.0) -> Estimate:
    return Estimate.of(
        BuildOptions(),
        dim=128,
        num_documents=documents,
        num_tokens=tokens,
        sampled=1 << 21,
        spilled=1 << 24,
        seconds=seconds,
    )


def test_a_large_collection_in_words() -> None:
    text = str(of())
    assert text.startswith("about 1,000,000 documents, 117.0 M tokens: 4.")
    assert "GB of index without texts, 4.3 GB of temporary files, 1." in text
    assert "GB of memory, 2." in text
    assert str(of(10_000, 100, seconds=5.0)).endswith("MB of memory, 1 min")


def test_what_is_told_of_an_index_is_near_its_size(
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = []
    monkeypatch.setattr(ingest, "_CHUNK_BYTES", 64 * 2 * 500)
    monkeypatch.setattr(estimate, "_tell", lambda given, *_: told.append(given))
    documents = clustered(rng, 2000)
    index = make(tmp_path / "a", documents, num_centroids=64)
    [given] = told
    info = index.info()
    assert given.num_documents == 2000
    assert given.num_tokens == pytest.approx(info["tokens"], rel=0.1)
    vectors = info["vector_bytes_per_token"] * info["tokens"]
    assert given.index_bytes == pytest.approx(vectors, rel=0.25)
    make(tmp_path / "b", iter(documents), num_centroids=64)
    make(tmp_path / "c", documents[:20], num_centroids=4)
    assert len(told) == 1
    assert caplog.text == ""


def test_a_full_disk_is_foreseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    with caplog.at_level(logging.INFO, logger="colbert_fast"):
        estimate._tell(of(), tmp_path, progress=False)
    assert "about 1,000,000 documents" in caplog.text
    assert "has 1.0 GB free, the build will need about 8." in caplog.text


def test_a_memory_budget_bounds_the_sample(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled = []
    fit = build.fit_centroids
    monkeypatch.setattr(
        build,
        "fit_centroids",
        lambda rows, *a, **k: sampled.append(len(rows)) or fit(rows, *a, **k),
    )
    documents = clustered(rng, 500)
    needed = estimate.BASE_BYTES + 3 * 4 * 64 * 16
    index = make(tmp_path / "a", documents, num_centroids=16, memory_budget=needed + 4 * 64 * 1000)
    assert 900 <= sampled[0] <= 1000 < index.info()["tokens"]
    with pytest.raises(ValueError, match=f"memory_budget must be above {needed} bytes for 16 cent"):
        make(tmp_path / "b", documents, num_centroids=16, memory_budget=needed)
