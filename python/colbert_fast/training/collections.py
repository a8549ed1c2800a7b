"""The collections of a recipe: questions, passages, and which belong together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from colbert_fast.corpus import read_corpus
from colbert_fast.evaluation import load_beir, read_qrels
from colbert_fast.training.data import Texts, training_positives
from colbert_fast.training.pseudo import pseudo_queries
from colbert_fast.training.recipe import Collection

__all__ = ["LoadedCollection", "load_collection", "write_questions"]

_QUESTIONS, _POSITIVES = "queries.jsonl", "positives.json"

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
    questions, positives = _questions(collection, seed)
    chosen = list(positives)
    if collection.limit is not None and collection.limit < len(chosen):
        picked = np.random.default_rng(seed).permutation(len(chosen))[: collection.limit]
        chosen = [chosen[i] for i in sorted(picked.tolist())]
    if not chosen:
        raise ValueError(f"collection {collection.name!r}: no question with a positive")
    lines = (json.dumps({"_id": name, "text": questions[name]}) + "\n" for name in chosen)
    with (folder / _QUESTIONS).open("w", encoding="utf-8") as file:
        file.writelines(lines)
    text = json.dumps({name: positives[name] for name in chosen})
    (folder / _POSITIVES).write_text(text, encoding="utf-8")


def load_collection(collection: Collection, folder: Path) -> LoadedCollection:
    """The collection, with the questions in `folder`, where its texts are kept too."""
    positives = json.loads((folder / _POSITIVES).read_text(encoding="utf-8"))
    return LoadedCollection(
        collection.name,
        Texts.open(folder / _QUESTIONS),
        Texts.open(_documents(collection), cache=folder / "documents"),
        positives,
    )


def _documents(collection: Collection) -> Path:
    return _given(collection.folder or collection.documents)


def _given(path: Path | None) -> Path:
    if path is None:
        raise AssertionError("not reached: checked by Collection")
    return path


def _questions(collection: Collection, seed: int) -> tuple[Mapping[str, str], Positives]:
    if collection.pseudo_queries:
        return _made(read_corpus(_documents(collection)), seed)
    if collection.folder is not None:
        positives = training_positives(collection.folder, collection.split)
        return load_beir(collection.folder, split=collection.split).queries, positives
    queries = Texts.open(_given(collection.queries))
    judged = read_qrels(_given(collection.positives))
    return queries, {query: good for query, grades in judged.items() if (good := _good(grades))}


def _good(grades: Mapping[str, int]) -> dict[str, int]:
    return {document: grade for document, grade in grades.items() if grade > 0}


def _made(documents: Iterator[dict[str, str]], seed: int) -> tuple[dict[str, str], Positives]:
    questions: dict[str, str] = {}
    positives: Positives = {}
    for query_id, text, document_id in pseudo_queries(documents, seed=seed):
        questions[query_id] = text
        positives[query_id] = {document_id: 1}
    return questions, positives
