"""The commands that train."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra encode)")
for package in ("accelerate", "pydantic", "sentence_transformers", "yaml"):
    pytest.importorskip(package, reason=f"{package} is not installed (extra train)")

from colbert_fast.training.data import (  # noqa: E402
    Texts,
    TrainingData,
    TupleFile,
    read_tuples,
    write_tuples,
)
from colbert_fast.training.train_teacher import train_teacher  # noqa: E402
from test_cli import logger_as_before, refused, run  # noqa: E402
from tiny_recipes import recipe_values, write_recipe, write_sources  # noqa: E402

__all__ = ["logger_as_before", "run"]  # fixtures


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return write_sources(tmp_path_factory.mktemp("sources"))


def test_train(run, sources, tmp_path):
    values = recipe_values(sources, tmp_path / "elsewhere", train_teacher=None, teacher=[])
    values["rounds"][0]["train"]["losses"] = {"contrastive": 1.0}
    values["collections"] = []
    path = write_recipe(tmp_path, values)
    arguments = ("train", path, "--data", sources / "beir", "--output", tmp_path / "run")
    first = run(*arguments)
    assert first.exit_code == 0, first.output
    again = json.loads(run(*arguments, "--json").stdout)
    model, title, *rows = first.stdout.splitlines()
    assert model == f"model: {tmp_path / 'run'}/round-1/final"
    assert title.split() == ["beir,", "split", "test", "start", "trained", "gain"]
    measured = again["evaluation"]["beir"]
    assert [row.split()[0] for row in rows] == list(measured["trained"])
    before, after, gain = map(float, rows[0].split()[1:])
    assert [before, after] == [
        pytest.approx(measured[name]["nDCG@10"], abs=5e-4) for name in ("start", "trained")
    ]
    assert gain == pytest.approx(after - before, abs=2e-3)
    assert again["model"] == f"{tmp_path / 'run'}/round-1/final"
    assert not (tmp_path / "elsewhere").exists()


def test_errors_of_recipes_are_one_line(run, sources, tmp_path):
    line = refused(run("train", "colbertv3"))
    assert "nor a recipe that comes along (colbertv2, default, default-graded, mini)" in line
    line = refused(run("train", "mini", "--output", tmp_path / "run"))
    assert line == "colbert-fast: data: no such folder; --data FOLDER names another"
    assert not (tmp_path / "run").exists()
    values = recipe_values(sources, tmp_path / "run")
    values["rounds"][0]["mine"]["nwya"] = 3
    line = refused(run("train", write_recipe(tmp_path, values)))
    assert "rounds.0.mine.nwya: Unexpected keyword argument" in line


def test_mine_and_score(run, sources, tmp_path):
    beir, out = sources / "beir", tmp_path / "rankings.jsonl"
    queries = ("--queries", beir / "queries.jsonl")
    documents = ("--documents", beir / "corpus.jsonl")
    result = run("mine", "bm25", out, *queries, *documents, "--depth", "4")
    assert result.stdout == f"{out}: {len(TupleFile(out))} rankings\n"
    by_model = run("mine", sources / "colbert", tmp_path / "m.jsonl", *queries, *documents)
    assert by_model.exit_code == 0, by_model.output
    assert "there already" in refused(run("mine", "bm25", out, *queries, *documents))

    tuples = tmp_path / "drawn.jsonl"
    drawing = ("sample", out, tuples, "--positives", beir / "qrels/train.tsv")
    result = run(*drawing, "--nway", "3")
    assert result.stdout == f"{tuples}: {len(TupleFile(tuples))} tuples\n"
    assert all(
        each.document_ids[0] == each.query_id.replace("q", "d") and len(each.document_ids) == 3
        for each in read_tuples(tuples)
    )
    assert "`bands` must be" in refused(run(*drawing, "--first", "9", "--last", "9"))

    examples = [each for each in read_tuples(tmp_path / "m.jsonl") if len(each.document_ids) > 2]
    write_tuples(tmp_path / "tuples.jsonl", [each._replace(scores=None) for each in examples])

    texts = [Texts.open(path) for path in (queries[1], documents[1])]
    data = TrainingData(*texts, TupleFile(tmp_path / "tuples.jsonl"), nway=3)
    train_teacher(sources / "encoder", data, tmp_path / "teacher", max_steps=1, progress=False)
    scored = tmp_path / "scored.jsonl"
    arguments = ("score", tmp_path / "tuples.jsonl", scored, "--teacher", tmp_path / "teacher")
    result = run(*arguments, *queries, *documents)
    assert result.exit_code == 0, result.output
    assert [each.document_ids for each in read_tuples(scored)] == [
        each.document_ids for each in examples
    ]
    assert all(each.scores for each in read_tuples(scored))
