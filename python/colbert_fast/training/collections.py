"""The collections of a recipe: questions, passages, and which belong together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from colbert_fast.evaluation import load_beir, read_qrels
from colbert_fast.training.data import Texts, graded, training_positives
from colbert_fast.training.pseudo import pseudo_queries
from colbert_fast.training.recipe import Collection

__all__ = ["LoadedCollection", "load_collection", "write_questions"]

_QUESTIONS, _POSITIVES = "queries.jsonl", "positives.json"
_PASSAGES = "passages.jsonl"  # where questions were made by cutting sentences out of passages

Positives = dict[str, dict[str, int]]


@dataclass(frozen=True)
class LoadedCollection:
    """What a stage works on.

    Attributes
    ----------
    name : str
    queries, documents : Texts
    positives : dict
        Query id to {document id: grade}; every query has one.
    """

    name: str
    queries: Texts
    documents: Texts
    positives: Positives


def write_questions(collection: Collection, folder: Path, seed: int) -> None:
    """Choose or make the questions of a collection, once for all stages."""
    questions: Mapping[str, str]
    if collection.pseudo_queries:
        passages = Texts.open(_documents(collection))
        made = pseudo_queries(passages, seed=seed)
        questions, positives = made.queries, made.positives
    else:
        questions, positives = _questions(collection)
    chosen = list(positives)
    if collection.limit is not None and collection.limit < len(chosen):
        picked = np.random.default_rng(seed).permutation(len(chosen))[: collection.limit]
        chosen = [chosen[i] for i in sorted(picked.tolist())]
    if not chosen:
        raise ValueError(f"collection {collection.name!r}: no question with a positive")
    if collection.pseudo_queries:
        cut = {name for each in chosen if each.startswith("cloze-") for name in positives[each]}
        kept = {name: (made.documents if name in cut else passages)[name] for name in passages}
        _write_texts(folder / _PASSAGES, kept)
    _write_texts(folder / _QUESTIONS, {name: questions[name] for name in chosen})
    text = json.dumps({name: positives[name] for name in chosen})
    (folder / _POSITIVES).write_text(text, encoding="utf-8")


def load_collection(collection: Collection, folder: Path) -> LoadedCollection:
    """The collection, with the questions in `folder`, where its texts are kept too."""
    positives = json.loads((folder / _POSITIVES).read_text(encoding="utf-8"))
    return LoadedCollection(
        collection.name,
        Texts.open(folder / _QUESTIONS),
        Texts.open(
            folder / _PASSAGES if collection.pseudo_queries else _documents(collection),
            cache=folder / "documents",
        ),
        positives,
    )


def _documents(collection: Collection) -> Path:
    return _given(collection.folder or collection.documents)


def _given(path: Path | None) -> Path:
    if path is None:
        raise AssertionError("not reached: checked by Collection")
    return path


def _write_texts(path: Path, texts: Mapping[str, str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for name, text in texts.items():
            file.write(json.dumps({"_id": name, "text": text}) + "\n")


def _questions(collection: Collection) -> tuple[Mapping[str, str], Positives]:
    if collection.folder is not None:
        folder, split = collection.folder, collection.split
        positives = training_positives(folder, split, min_grade=collection.min_grade)
        return load_beir(folder, split=split).queries, positives
    path = _given(collection.positives)
    positives = graded(read_qrels(path), collection.min_grade, name=str(path))
    return Texts.open(_given(collection.queries)), positives
