"""The commands that change an index."""

from __future__ import annotations

import json

import numpy as np
import pytest

from colbert_fast.index import Index
from fakes import WordModel
from test_cli import TEXTS, built, corpus, logger_as_before, refused, run

__all__ = ["built", "corpus", "logger_as_before", "run"]  # fixtures


@pytest.fixture(autouse=True)
def own_model(monkeypatch):
    """The index finds the model that has no weights."""
    monkeypatch.setattr("colbert_fast.reader.load_model", lambda _: WordModel())


@pytest.fixture
def more(tmp_path):
    path = tmp_path / "more.jsonl"
    path.write_text(json.dumps({"_id": "new", "text": "a violet tulip"}) + "\n")
    return path


def test_add_and_delete(run, built, more):
    count = len(TEXTS)
    assert run("add", built, more).stdout == f"{built}: 1 documents put in, {count + 1} in all\n"
    assert "violet tulip" in run("search", built, "tulip", "-k", "1").stdout
    line = refused(run("add", built, more))
    assert "'new' is in the index already; --upsert replaces documents" in line
    assert run("add", built, more, "--upsert").exit_code == 0
    assert run("delete", built, "new").stdout == f"{built}: 1 documents deleted, {count} left\n"
    assert "not in the index: 'new'" in refused(run("delete", built, "new"))
    assert "bytes before" in run("compact", built).stdout
    assert "bytes before" in run("compact", built, "--retrain").stdout
    assert run("verify", built).exit_code == 0
    with Index.open(built) as index:
        assert sorted(index.ids) == sorted(TEXTS)
        assert index.info()["deleted"] == 0


def test_numbers_as_ids(run, tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("sky\nsea\n")
    run("index", path, tmp_path / "a.cf")
    assert "not in the index: '1'" in refused(run("delete", tmp_path / "a.cf", "1"))
    assert run("delete", tmp_path / "a.cf", "1", "--numbers").exit_code == 0
    assert Index.open(tmp_path / "a.cf").ids == (2,)


def test_merge(run, built, more, tmp_path):
    other = tmp_path / "other.cf"
    assert run("index", more, other, "--codec-from", built).exit_code == 0
    out = tmp_path / "merged.cf"
    assert run("merge", out, built, other).stdout == f"{out}: {len(TEXTS) + 1} documents\n"
    assert "pass --overwrite" in refused(run("merge", out, built, other))


def test_repair(run, built):
    [damaged] = built.glob("segment-*/list_data.npy")
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    assert "list_data.npy: corrupt within bytes" in refused(run("verify", built))
    result = run("repair", built)
    assert "1 files were damaged, 1 of them rebuilt; 0 documents lost" in result.stdout
    assert run("verify", built).exit_code == 0


def test_resume(run, corpus, tmp_path):
    assert run("index", corpus, tmp_path / "a.cf", "--resume").exit_code == 0
    assert len(Index.open(tmp_path / "a.cf")) == len(TEXTS)


def test_embeddings_are_added(run, tmp_path):
    rows = np.random.default_rng(0).standard_normal((30, 32)).astype(np.float32)
    np.save(tmp_path / "a.npy", rows)
    np.save(tmp_path / "a.doclens.npy", np.full(6, 5))
    assert run("index", tmp_path / "a.npy", tmp_path / "a.cf").exit_code == 0
    assert run("add", tmp_path / "a.cf", tmp_path / "a.npy").exit_code == 0
    assert Index.open(tmp_path / "a.cf").ids == tuple(range(12))
