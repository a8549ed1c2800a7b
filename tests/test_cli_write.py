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
    monkeypatch.setattr("colbert_fast.reader.model_of_index", lambda _: WordModel())


@pytest.fixture
def more(tmp_path):
    path = tmp_path / "more.jsonl"
    path.write_text(json.dumps({"_id": "new", "text": "a violet tulip"}) + "\n")
    return path


def test_add_and_delete(run, built, more):
    count = len(TEXTS)
    assert run("add", built, more).stdout == f"{built}: 1 document put in, {count + 1} in all\n"
    assert "violet tulip" in run("search", built, "tulip", "-k", "1").stdout
    line = refused(run("add", built, more))
    assert "'new' is in the index already; --upsert replaces documents" in line
    assert run("add", built, more, "--upsert").exit_code == 0
    assert run("delete", built, "new").stdout == f"{built}: 1 document deleted, {count} left\n"
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
    line = refused(run("delete", tmp_path / "a.cf", "1"))
    assert "not in the index: '1'; ids that are numbers need --numbers" in line
    line = refused(run("delete", tmp_path / "a.cf", "x"))
    assert line.endswith("not in the index: 'x'")
    line = refused(run("delete", tmp_path / "a.cf", "1", "x", "--numbers"))
    assert line.endswith("'x' is no number, as --numbers says")
    assert run("delete", tmp_path / "a.cf", "1", "--numbers").exit_code == 0
    assert Index.open(tmp_path / "a.cf").ids == (2,)


@pytest.mark.parametrize("options", [[], ["d1", "--filter", "size > 1"]])
def test_delete_takes_ids_or_a_filter(run, built, options):
    assert "give either ids of documents or --filter" in refused(run("delete", built, *options))


def test_delete_by_filter(run, tmp_path):
    path = tmp_path / "numbered.jsonl"
    path.write_text("".join(f'{{"id": "d{n}", "text": "sky", "year": {n}}}\n' for n in range(5)))
    run("index", path, tmp_path / "a.cf")
    result = run("delete", tmp_path / "a.cf", "--filter", "year >= 3")
    assert result.stdout == f"{tmp_path / 'a.cf'}: 2 documents deleted, 3 left\n"
    with Index.open(tmp_path / "a.cf") as index:
        assert index.ids == ("d0", "d1", "d2")


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
    assert "1 damaged file, 1 rebuilt; 0 documents lost; 0 deleted documents" in result.stdout
    assert result.exit_code == 0
    assert run("verify", built).exit_code == 0


def test_repair_that_loses_documents(run, built, more):
    run("add", built, more)
    [*_, damaged] = sorted(built.glob("segment-*/codes.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    result = run("repair", built)
    assert result.exit_code == 1
    assert "1 damaged file, 0 rebuilt; 1 document lost; 0 deleted documents" in result.stdout
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
