"""The commands convert, export and convert-checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from colbert_fast import Index
from foreign_indexes import INDEX, PIDS, QUERIES

testing = pytest.importorskip("typer.testing", reason="typer is not installed (extra cli)")
cli = pytest.importorskip("colbert_fast.cli.commands")


def run(*arguments: object) -> Any:
    return testing.CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_convert_with_the_collection_and_export_again(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    lines = [{"_id": f"d{n}", "text": f"text {n}"} for n in range(60)]
    corpus.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    result = run("convert", INDEX, tmp_path / "index", "--documents", corpus)
    assert result.exit_code == 0
    assert "60 documents, 626 tokens, 2 bits" in result.output
    with Index.open(tmp_path / "index") as index:
        assert index.search(QUERIES[0], 1)[0].text == f"text {PIDS[0, 0]}"
    result = run("export", tmp_path / "index", tmp_path / "exported", "--layout", "stanford")
    assert result.exit_code == 0
    assert "60 documents" in result.output
    assert (tmp_path / "exported" / "ivf.pid.pt").is_file()


def test_convert_complains_in_one_line(tmp_path: Path) -> None:
    shutil.copytree(INDEX, tmp_path / "foreign")
    (tmp_path / "foreign" / "0.codes.pt").unlink()
    result = run("convert", tmp_path / "foreign", tmp_path / "index")
    assert result.exit_code == 1
    assert "0.codes.pt" in result.output
    assert len(result.output.strip().splitlines()) == 1
    result = run("convert", tmp_path / "nofolder", tmp_path / "index")
    assert result.output == f"colbert-fast: {tmp_path}/nofolder: no such folder\n"
    result = run("search", INDEX, "sky")
    assert "is not an index, and colbert-fast convert takes over those of" in result.output


def test_export_of_another_codec_names_the_option(tmp_path: Path) -> None:
    vectors = [QUERIES[0], QUERIES[1]]
    Index.build(tmp_path / "index", vectors, progress=False).close()
    result = run("export", tmp_path / "index", tmp_path / "exported")
    assert result.exit_code == 1
    assert "--recode" in result.output
    assert run("export", tmp_path / "index", tmp_path / "exported", "--recode").exit_code == 0


def test_convert_checkpoint_both_ways(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tiny_models import DIM, write_stanford

    write_stanford(tmp_path / "first", metadata={"dim": DIM})
    for source, target, layout in (
        ("first", "second", "pylate"),
        ("second", "third", "stanford"),
    ):
        result = run("convert-checkpoint", tmp_path / source, tmp_path / target, "--layout", layout)
        assert result.exit_code == 0
    assert (tmp_path / "second" / "modules.json").is_file()
    assert (tmp_path / "third" / "artifact.metadata").is_file()
    result = run("convert-checkpoint", tmp_path / "first", tmp_path / "third", "--layout", "pylate")
    assert result.exit_code == 1
    assert "already exists" in result.output
