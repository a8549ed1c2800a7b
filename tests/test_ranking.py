"""Texts ranked without an index have the scores that an index of their vectors gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from colbert_fast import Index, rerank
from fakes import WordModel

TEXTS = ["the sky is blue", "grass is green", "", "blue blue sky"]
MODEL: Any = WordModel()


def test_scores_are_those_of_an_index(tmp_path: Path) -> None:
    options: Any = {"codec": "float16", "progress": False}
    with Index.build(tmp_path / "a.cf", TEXTS, model=MODEL, **options) as index:
        hits = index.search("blue sky", exhaustive=True)
    ranked = rerank("blue sky", TEXTS, model=MODEL)
    assert [place for place, _ in ranked] == [hit.id for hit in hits]
    assert [score for _, score in ranked] == pytest.approx([hit.score for hit in hits], abs=1e-2)
    assert rerank("blue sky", [], model=MODEL) == []


def test_equal_texts_keep_their_order() -> None:
    assert [place for place, _ in rerank("sky", ["sky"] * 3, model=MODEL)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("query", "texts", "message"),
    [
        (["sky"], ["sky"], "query: expected one text, got list"),
        ("sky", "sky", "texts: expected a sequence of texts, got str"),
    ],
)
def test_arguments_that_are_refused(query: Any, texts: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        rerank(query, texts, model=MODEL)
