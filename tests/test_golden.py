"""Indexes of every released format are read, and answer as they did when they were written."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from colbert_fast import Index

FORMATS = sorted((Path(__file__).parent / "golden").glob("format-*"))
CODECS = ("default", "plaid", "float16")


@pytest.fixture(params=FORMATS, ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(request.param, tmp_path / "golden"))


def test_there_are_golden_indexes() -> None:
    assert FORMATS


@pytest.mark.parametrize("codec", CODECS)
def test_answers(golden: Path, codec: str) -> None:
    with Index.open(golden / codec) as index:
        index.verify()
        found = index.search(np.load(golden / "queries.npy"), 5)
        pids = [[hit.id for hit in hits] for hits in found]
        scores = [[hit.score for hit in hits] for hits in found]
        assert pids == np.load(golden / f"pids-{codec}.npy").tolist()
        np.testing.assert_array_equal(scores, np.load(golden / f"scores-{codec}.npy"))
        assert not (golden / codec / "writer.lock").exists()


def test_texts_metadata_and_deletions(golden: Path) -> None:
    with Index.open(golden / "default") as index:
        assert index.ids == (*range(7), *range(8, 40))
        [hit] = index.search(np.load(golden / "queries.npy")[0], 1, filter="year = 2033")
        assert (hit.id, hit.text, hit.metadata) == (33, "text 33", {"year": 2033})


def test_changes(golden: Path) -> None:
    with Index.open(golden / "default") as index:
        index.delete([8])
        index.compact(progress=False)
        index.verify()
        assert len(index) == 38
