"""A recipe from its file to a model: every stage is there, kept, continued, or refused by name."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra encode)")
for package in ("accelerate", "pydantic", "sentence_transformers", "yaml"):
    pytest.importorskip(package, reason=f"{package} is not installed (extra train)")

from colbert_fast import ColBERT  # noqa: E402
from colbert_fast.training.recipe import Collection, find_recipe, read_recipe  # noqa: E402
from colbert_fast.training.run import run_recipe  # noqa: E402
from tiny_recipes import BAND, recipe_values, write_recipe, write_sources  # noqa: E402


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def finished(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    path = write_recipe(folder, recipe_values(sources, folder / "run"))
    return path, *run_recipe(read_recipe(path), progress=False)


def test_every_stage_is_there(finished):
    path, model, measures = finished
    stages = {file.parent.name for file in path.parent.glob("run/*/stage.json")}
    assert stages == {
        "questions-words",
        "start",
        *("warm-up-mined", "warm-up-tuples", "warm-up"),
        *("teacher-mined", "teacher-tuples", "teacher"),
        *("round-1-mined", "round-1-tuples", "round-1"),
        *("start-evaluation-beir", "round-1-evaluation-beir"),
    }
    assert model == path.parent / "run/round-1/final"
    evaluation = measures["beir"]
    assert evaluation.split == "test"
    assert 0 < evaluation.trained["nDCG@10"] <= 1
    assert evaluation.start["nDCG@10"] != evaluation.trained["nDCG@10"]
    written = json.loads((path.parent / "run/evaluation.json").read_text())
    assert written == {"beir": evaluation._asdict()}
    before = ColBERT.from_pretrained(path.parent / "run/start/final").fingerprint()
    assert ColBERT.from_pretrained(model).fingerprint() != before


def test_tuples_have_the_positive_first_and_the_teachers_scores(finished):
    lines = (finished[0].parent / "run/round-1-tuples/words.jsonl").read_text().splitlines()
    for line in lines:
        query, *documents = json.loads(line)
        assert documents[0][0] == query.replace("q", "d")
        assert len({name for name, _ in documents}) == 4
        # three teachers' z-scores, weighted: a lone teacher's own scores would have another sum
        assert sum(score for _, score in documents) == pytest.approx(0, abs=1e-6)
        assert any(score for _, score in documents)


def test_what_is_there_is_not_made_again(finished):
    path, model, measures = finished
    files = {file: file.stat().st_mtime_ns for file in path.parent.rglob("*") if file.is_file()}
    assert run_recipe(read_recipe(path), progress=False) == (model, measures)
    assert files == {
        file: file.stat().st_mtime_ns for file in path.parent.rglob("*") if file.is_file()
    }


def test_a_changed_stage_is_refused_by_name(finished, sources, tmp_path):
    path, _, _ = finished
    values = recipe_values(sources, path.parent / "run")
    values["rounds"][0]["mine"]["depth"] = 11
    with pytest.raises(ValueError, match=r"round-1-mined was made with other .*depth: 10 then, 11"):
        run_recipe(read_recipe(write_recipe(tmp_path, values)), progress=False)


def test_changed_files_are_noticed(finished, sources):
    path, _, _ = finished
    judged = sources / "beir/qrels/train.tsv"
    before = judged.stat()
    try:
        os.utime(judged, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        with pytest.raises(ValueError, match=r"questions-words was made with other .*qrels"):
            run_recipe(read_recipe(path), progress=False)
    finally:
        os.utime(judged, ns=(before.st_atime_ns, before.st_mtime_ns))


def one_round(sources, folder, mine, train):
    """The configuration and the tuples of a run of one round, taught by the judgements alone."""
    values = recipe_values(
        sources,
        folder / "run",
        warm_up=None,
        train_teacher=None,
        teacher=[{"kind": "judgements"}],
        rounds=[{"mine": mine, "train": train}],
        evaluate=[],
        seed=7,
    )
    model, _ = run_recipe(read_recipe(write_recipe(folder, values)), progress=False)
    lines = (folder / "run/round-1-tuples/words.jsonl").read_text().splitlines()
    config = json.loads((model / "training.json").read_text())["config"]
    return config, [json.loads(line) for line in lines]


def test_a_lone_teacher_and_several_tuples(sources, tmp_path):
    mine = {"sources": ["bm25"], "depth": 10, "nway": 3, "bands": BAND, "tuples_per_positive": 2}
    train = {"losses": {"kl": 1.0}, "batch_size": 4, "max_steps": 1}
    config, tuples = one_round(sources, tmp_path, mine, train)
    assert config["seed"] == 7
    assert [[score for _, score in documents] for _, *documents in tuples] == [[1, 0, 0]] * len(
        tuples
    )
    counts = Counter(query for query, *_ in tuples)
    assert set(counts.values()) == {2}
    assert len(set(map(json.dumps, tuples))) > len(counts)


def write_tuples_of(folder, *, scores=(), questions=4, documents=3):
    """A file of tuples `q_n: d_n, d_n+1, ...`, and its content."""
    rows = [
        [f"q{n}", *([f"d{n + i}", *scores[i : i + 1]] for i in range(documents))]
        for n in range(questions)
    ]
    path = folder / "given.jsonl"
    lines = [row if scores else [row[0], *(name for name, *_ in row[1:])] for row in rows]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path, rows


def recipe_of_tuples(sources, output, path, **changes):
    train = {"losses": {"kl": 1.0}, "batch_size": 4, "max_steps": 1}
    nothing = {"warm_up": None, "train_teacher": None, "teacher": [], "evaluate": []}
    mine = {"tuples": {"words": str(path)}, **changes.pop("mine", {})}
    rounds = [{"mine": mine, "train": train}]
    return recipe_values(sources, output, **{**nothing, "rounds": rounds, **changes})


def run_values(folder, values):
    run_recipe(read_recipe(write_recipe(folder, values)), progress=False)


def tuples_of(run, stage="round-1"):
    lines = (run / f"{stage}-tuples/words.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_tuples_that_are_there(sources, tmp_path):
    """They keep their order and scores; a teacher gives them others."""
    path, rows = write_tuples_of(tmp_path, scores=[1.5, 3.0, 0.5])
    values = recipe_of_tuples(sources, tmp_path / "run", path)
    run_values(tmp_path, values)
    assert tuples_of(tmp_path / "run") == rows
    assert not (tmp_path / "run/round-1-mined").exists()
    taught = {**values, "output": str(tmp_path / "taught"), "teacher": [{"kind": "judgements"}]}
    run_values(tmp_path, taught)
    scores = [[score for _, score in documents] for _, *documents in tuples_of(tmp_path / "taught")]
    assert scores == [[1, 0, 0]] * 4
    path.write_text(path.read_text() + "\n")
    with pytest.raises(ValueError, match=r"round-1-tuples was made .*given\.jsonl"):
        run_values(tmp_path, values)


def test_tuples_that_are_there_for_a_warm_up_and_a_teacher(sources, tmp_path):
    path, rows = write_tuples_of(tmp_path, scores=[1.5, 3.0, 0.5])
    train = {"losses": {"kl": 1.0}, "batch_size": 4, "max_steps": 1}
    options = {"max_steps": 1, "batch_size": 2, "accumulation_steps": 1}
    mine = {"tuples": {"words": str(path)}}
    base = str(sources / "encoder")
    values = recipe_of_tuples(
        sources,
        tmp_path / "run",
        path,
        rounds=[],
        warm_up={"mine": mine, "train": train},
        train_teacher={"base": base, "mine": mine, "options": options},
    )
    run_values(tmp_path, values)
    assert tuples_of(tmp_path / "run", "warm-up") == tuples_of(tmp_path / "run", "teacher") == rows


def test_tuples_of_other_questions_are_left_out(sources, tmp_path, caplog):
    path, rows = write_tuples_of(tmp_path, scores=[1.0, 2.0], documents=2)
    other = json.dumps(["other", ["d0", 1.0], ["d1", 0.0]])
    path.write_text(f"{other}\n{path.read_text()}")
    run_values(tmp_path, recipe_of_tuples(sources, tmp_path / "run", path))
    assert tuples_of(tmp_path / "run") == rows
    assert "1 tuples are of other questions" in caplog.text


def test_groups_that_are_there(sources, tmp_path, caplog):
    rows = [[query, ["d0", 1.0], ["d1", 0.5]] for query in ("q0", "q1", "q2", "q3")]
    path = tmp_path / "given.jsonl"
    values = recipe_of_tuples(sources, tmp_path / "run", path, mine={"group_size": 2})
    for wrong, message in (
        (rows[:3], "3 tuples and 0 of other"),
        ([*rows, ["other", ["d0", 1.0], ["d1", 0.5]]], "4 tuples and 1 of other"),
        ([*rows[:1], ["q1", ["d0", 1.0], ["d2", 0.5]]], "tuple 2 .*not the documents of its group"),
        ([["other", ["d0", 1.0], ["d1", 0.5]]], "no tuple of a question of the collection"),
    ):
        path.write_text("\n".join(map(json.dumps, wrong)))
        with pytest.raises(ValueError, match=message):
            run_values(tmp_path, {**values, "output": str(tmp_path / f"run-{len(wrong)}")})
    path.write_text("\n".join(map(json.dumps, rows)))
    run_values(tmp_path, values)
    assert tuples_of(tmp_path / "run") == rows
    assert "3 tuples do not begin with a positive" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["q0", ["d0", 1.0], ["d1", 0.5]], "tuple 5 .*'q0'.*: 2 documents; the first has 3"),
        (["q0", "d0", "d1", "d2"], "tuple 5 .*scores must be there for all"),
        (["q0", ["d0", 1.0], ["d1", 0.5], ["nine", 0.0]], "tuple 5 .*no text for document 'nine'"),
    ],
)
def test_tuples_that_cannot_be_trained_on(sources, tmp_path, line, message):
    path, _ = write_tuples_of(tmp_path, scores=[1.5, 3.0, 0.5])
    path.write_text(f"{path.read_text()}\n{json.dumps(line)}")
    with pytest.raises(ValueError, match=rf"'words': .*given\.jsonl, {message}"):
        run_values(tmp_path, recipe_of_tuples(sources, tmp_path / "run", path))


def test_tuples_that_do_not_go_with_the_recipe(sources, tmp_path):
    path, _ = write_tuples_of(tmp_path)
    for values, message in (
        (
            recipe_of_tuples(sources, tmp_path, tmp_path / "none.jsonl"),
            r"no such file.*none\.jsonl",
        ),
        (recipe_of_tuples(sources, tmp_path, path, mine={"nway": 3}), "nway: .*not mined or drawn"),
        (recipe_of_tuples(sources, tmp_path, path, mine={"tuples": {}}), r"each of \['words'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            read_recipe(write_recipe(tmp_path, values))
    with pytest.raises(ValueError, match="no teacher's scores"):
        run_values(tmp_path, recipe_of_tuples(sources, tmp_path / "run", path))


def test_killed_and_started_again(finished, sources, tmp_path):
    """Killed after a checkpoint of the last training; it ends as one that was not."""
    path = write_recipe(tmp_path, recipe_values(sources, tmp_path / "run"))
    script = (
        "import sys, pathlib, colbert_fast.training.run as r, colbert_fast.training.recipe as p\n"
        "r.run_recipe(p.read_recipe(pathlib.Path(sys.argv[1])), progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(path)])
    try:
        while not list(tmp_path.glob("run/round-1/checkpoint-*")):
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    model, measures = run_recipe(read_recipe(path), progress=False)
    assert measures == finished[2]
    assert (model / "model.safetensors").read_bytes() == (
        finished[1] / "model.safetensors"
    ).read_bytes()


def test_a_round_is_added(sources, tmp_path, monkeypatch):
    """The first round is kept, and the second one's model is measured too."""
    monkeypatch.chdir(sources / "beir")
    path, _ = write_tuples_of(tmp_path, scores=[1.5, 3.0, 0.5])
    values = recipe_of_tuples(sources, tmp_path / "run", path, evaluate=["."])
    run_values(tmp_path, values)
    first = (tmp_path / "run/round-1/stage.json").stat().st_mtime_ns
    run_values(tmp_path, {**values, "rounds": 2 * values["rounds"]})
    assert (tmp_path / "run/round-1/stage.json").stat().st_mtime_ns == first
    assert (tmp_path / "run/round-2-evaluation-beir/measures.json").exists()


def test_a_round_hangs_on_what_it_is_evaluated_on(sources, tmp_path):
    path, _ = write_tuples_of(tmp_path, scores=[1.5, 3.0, 0.5])
    values = recipe_of_tuples(sources, tmp_path / "run", path)
    beir = shutil.copytree(sources / "beir", tmp_path / "judged")
    validated = {"eval_folder": str(beir), "eval_split": "test", "save_steps": 1}
    values["rounds"][0]["train"] |= validated
    run_values(tmp_path, values)
    (beir / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\n")
    with pytest.raises(ValueError, match=r"round-1 was made .*judged"):
        run_values(tmp_path, values)


def test_margins_pass_over_a_positive_that_nothing_was_found_for(sources, tmp_path, caplog):
    beir = shutil.copytree(sources, tmp_path / "sources") / "beir"
    for name, text in (
        ("corpus.jsonl", json.dumps({"_id": "rare", "text": "zyzzyva"})),
        ("queries.jsonl", json.dumps({"_id": "rare", "text": "zyzzyva"})),
        ("qrels/train.tsv", "rare\trare\t1"),
    ):
        (beir / name).write_text(f"{(beir / name).read_text().rstrip()}\n{text}\n")
    mine = {"sources": ["bm25"], "depth": 10, "nway": 2, "bands": BAND, "margin": 0.0}
    train = {"losses": {"kl": 1.0}, "batch_size": 4, "max_steps": 1}
    _, tuples = one_round(beir.parent, tmp_path, mine, train)
    assert "rare" not in {query for query, *_ in tuples}
    assert "positives have too few candidates" in caplog.text


def test_two_processes_and_made_questions(sources, tmp_path):
    values = {
        "output": str(tmp_path / "run"),
        "collections": [
            {
                "name": "made",
                "documents": str(sources / "beir/corpus.jsonl"),
                "pseudo_queries": True,
                "limit": 8,
            }
        ],
        "start": {
            "model": str(sources / "encoder"),
            "dim": 16,
            "document_length": 32,
            "projection": "principal",
        },
        "rounds": [
            {
                "mine": {"sources": ["bm25"], "depth": 10, "nway": 2, "bands": BAND},
                "train": {"losses": {"contrastive": 1.0}, "batch_size": 4, "max_steps": 2},
            }
        ],
    }
    recipe = read_recipe(write_recipe(tmp_path, values))
    model, measures = run_recipe(recipe, processes=2, progress=False)
    assert measures == {}
    assert json.loads((model / "training.json").read_text())["processes"] == 2
    questions = (tmp_path / "run/questions-made/queries.jsonl").read_text().splitlines()
    assert 0 < len(questions) <= 8


def test_a_process_s_error_is_raised_as_in_one(sources, tmp_path):
    path, _ = write_tuples_of(tmp_path, scores=[1.5, 3.0, 0.5])
    values = recipe_of_tuples(sources, tmp_path / "run", path)
    values["rounds"][0]["train"]["batch_size"] = 3
    with pytest.raises(ValueError, match=r"^batch_size: want a multiple of the 2 processes"):
        run_recipe(read_recipe(write_recipe(tmp_path, values)), processes=2, progress=False)


def test_groups(sources, tmp_path):
    """Questions about the same documents, scored by what is known of them."""
    mine = {"sources": ["bm25"], "depth": 10, "nway": 3, "group_size": 2, "groups": 6}
    train = {"losses": {"kl": 1.0}, "batch_size": 4, "max_steps": 2}
    config, tuples = one_round(sources, tmp_path, mine, train)
    assert config["group_size"] == 2
    assert 2 <= len(tuples) <= 12
    for pair in zip(tuples[::2], tuples[1::2], strict=True):
        first, second = ({name for name, _ in documents} for _, *documents in pair)
        assert first == second
    for query, *documents in tuples:
        scores = dict(documents)
        assert max(scores, key=scores.get) == query.replace("q", "d") == documents[0][0]


def test_too_few_judgements_for_groups(sources, tmp_path):
    mine = {"sources": ["bm25"], "depth": 10, "nway": 3, "group_size": 9}
    train = {"losses": {"kl": 1.0}, "batch_size": 9, "max_steps": 1}
    with pytest.raises(ValueError, match=r"collection 'words': no group: .* want more judgements"):
        one_round(sources, tmp_path, mine, train)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": [{"mine": {"depht": 3}, "train": {}}]}, r"rounds\.0\.mine\.depht: Unexpected"),
        (
            {"rounds": [{"train": {"nwya": 3}}]},
            r"rounds\.0.*unknown key 'nwya'; did you mean 'nway'",
        ),
        ({"rounds": [{"train": {"batch_size": "four"}}]}, r"rounds\.0.*batch_size: want int"),
        ({"teacher": []}, r"losses kl need a `teacher`"),
        ({"train_teacher": None}, r"'trained' is the one of `train_teacher`"),
        ({"teacher": [{"kind": "bm25", "model": "x"}]}, r"kind bm25 wants no `model`"),
        ({"teacher": [{"kind": "maxsim"}]}, r"kind maxsim wants a `model`"),
        ({"collections": []}, r"collections: want at least one"),
        ({"collections": [{"name": "a/b", "folder": "x"}]}, r"'a/b': want a name that files"),
        ({"collections": [{"name": "x", "folder": "x", "limit": -1}]}, r"'x': want a limit above"),
        ({"collections": [{"name": "x"}]}, r"collection 'x': give either `folder` or documents"),
        ({"seed": "seven"}, r"seed: Input should be a valid integer"),
        ({"evaluate": ["nowhere"]}, r"evaluate: no such folder: nowhere"),
        ({"rounds": [{"train": {"group_size": 2}}]}, r"group_size belongs to mine"),
        ({"rounds": [{"train": {"nway": 20}}]}, r"nway is 20, of tuples of 16"),
        ({"rounds": [{"mine": {"nway": 1}, "train": {}}]}, r"rounds\.0\.mine.*`nway` must be"),
        (
            {"rounds": [{"mine": {"bands": [[0, 5, 0.3]]}, "train": {}}]},
            r"rounds\.0\.mine.*shares of `bands` must add up",
        ),
        ({"rounds": [{"mine": {"ratio": 0.9}, "train": {}}]}, r"want exactly one `teacher`"),
        ({"warm_up": {"train": {}}}, r"warm_up: it has no teacher"),
        (
            {"train_teacher": {"base": "x", "options": {"epoch": 1}}},
            r"train_teacher.*'epoch' is none of .*epochs",
        ),
        (
            {"train_teacher": {"base": "x", "options": {"device": "cpu"}}},
            r"train_teacher.*'device' is none of",
        ),
    ],
)
def test_what_is_wrong_is_named(sources, tmp_path, change, message):
    path = write_recipe(tmp_path, recipe_values(sources, tmp_path / "run", **change))
    with pytest.raises(ValueError, match=message) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value)


def test_what_is_not_yaml_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text("rounds: [")
    with pytest.raises(ValueError, match=r"recipe\.yaml: not YAML"):
        read_recipe(tmp_path / "recipe.yaml")


def test_recipes_that_come_along(tmp_path, monkeypatch):
    recipe = read_recipe(find_recipe("colbertv2"))
    assert [each.config(0).nway for each in recipe.rounds] == [64, 64]
    collection = Collection("mine", tmp_path)
    for name in ("default", "mini"):
        assert read_recipe(find_recipe(name), collections=[collection]).collections == (collection,)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for number in (1, 2):
        (tmp_path / f"data/graded-{number}.jsonl").touch()
    graded = read_recipe(find_recipe("default-graded"))
    assert [each.config(0).max_steps for each in graded.rounds] == [860, 1348]
    first = read_recipe(find_recipe("default"))
    assert graded.start.model == str(first.output / "round-1/final")
    with pytest.raises(FileNotFoundError, match=r"colbertv2, default, default-graded, mini\)"):
        find_recipe("colbertv3")
