"""Stages of a run: kept, continued, refused when their settings changed."""

from __future__ import annotations

import json

import pytest

from colbert_fast.training.stages import Stages


@pytest.fixture
def stages(tmp_path):
    return Stages(tmp_path / "run")


def touch(name):
    return lambda folder: (folder / name).touch()


def never(folder):
    raise AssertionError(f"{folder} is made again")


def test_a_stage_that_is_done_is_kept(stages):
    folder = stages.run("mine", {"depth": 10}, touch("ranking"))
    assert (folder / "ranking").exists()
    assert stages.run("mine", {"depth": 10}, never) == folder


def test_a_stage_that_failed_goes_on_in_its_folder(stages, caplog):
    def stopped(folder):
        (folder / "part-0").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stages.run("mine", {}, stopped)
    assert "mine: stopped; what is done is kept, and the same run goes on from there" in caplog.text
    seen = []
    stages.run("mine", {}, lambda folder: seen.extend(file.name for file in folder.iterdir()))
    assert "part-0" in seen
    stages.run("mine", {}, never)


def test_other_settings_are_refused_by_name(stages):
    stages.run("mine", {"depth": 10, "seed": 0}, touch("ranking"))
    with pytest.raises(ValueError, match=r"depth: 10 then, 20 now.*remove that folder"):
        stages.run("mine", {"depth": 20, "seed": 0}, never)


def test_a_stage_stopped_under_other_settings_is_refused(stages):
    with pytest.raises(AssertionError):
        stages.run("mine", {"depth": 10}, never)
    with pytest.raises(ValueError, match="depth"):
        stages.run("mine", {"depth": 20}, never)


def test_a_stage_hangs_on_those_it_is_made_from(stages):
    first = stages.run("mine", {"depth": 10}, touch("ranking"))
    second = stages.run("score", {}, touch("scores"), after=(first,))
    stages.run("train", {}, touch("model"), after=(second,))
    (first / "stage.json").unlink()
    first = stages.run("mine", {"depth": 20}, touch("ranking"))
    with pytest.raises(ValueError, match=r"score was made with other settings \(mine:"):
        stages.run("score", {}, never, after=(first,))


def test_time_is_noted_and_does_not_matter(stages):
    first = stages.run("mine", {}, touch("ranking"))
    file = first / "stage.json"
    stage = json.loads(file.read_text())
    assert stage["done"] is True
    assert stage["seconds"] >= 0
    stages.run("score", {}, touch("scores"), after=(first,))
    file.write_text(json.dumps({**stage, "seconds": 7e7}))
    stages.run("score", {}, never, after=(first,))


def test_a_run_in_the_folder_of_its_data_is_no_input(tmp_path):
    stages = Stages(tmp_path / "data/run")
    (tmp_path / "data/corpus").write_text("a text")
    stages.run("mine", {}, touch("ranking"), inputs=[tmp_path / "data"])
    stages.run("mine", {}, never, inputs=[tmp_path / "data"])
    (tmp_path / "data/corpus").write_text("another text")
    with pytest.raises(ValueError, match="mine was made with other settings"):
        stages.run("mine", {}, never, inputs=[tmp_path / "data"])


def test_files_are_on_disk_before_their_stage_is_done(stages, monkeypatch):
    synced = []

    def sync_files(folder, names):
        assert json.loads((folder / "stage.json").read_text())["done"] is False
        synced.extend(names)

    monkeypatch.setattr("colbert_fast.training.stages.sync_files", sync_files)
    stages.run("mine", {}, touch("ranking"))
    assert "ranking" in synced
