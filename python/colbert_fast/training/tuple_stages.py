"""The stages that make the tuples of a round: rankings, negatives, the teacher's scores."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from colbert_fast.model import ColBERT
from colbert_fast.training.collections import LoadedCollection
from colbert_fast.training.cross_encoder import CrossEncoderTeacher
from colbert_fast.training.data import NWay, TupleFile, write_tuples
from colbert_fast.training.given import given_tuples
from colbert_fast.training.groups import sample_groups
from colbert_fast.training.mining import mine
from colbert_fast.training.recipe import Mining, TeacherPart
from colbert_fast.training.sampling import Rankings, sample_tuples
from colbert_fast.training.start import resolve_model
from colbert_fast.training.teacher import CombinedTeacher, Teacher, score_with_teacher
from colbert_fast.training.teachers import (
    BiEncoderTeacher,
    BM25Teacher,
    JudgementsTeacher,
    MaxSimTeacher,
)

__all__ = ["Teachers", "mine_all", "sample_all"]

_PLAIN: dict[str, Any] = {"do_query_expansion": False, "query_prefix": "", "document_prefix": ""}

# Documents that may lead a group, for each that is wanted: some have too few questions around.
_SPARE = 3


def mine_all(
    collections: Sequence[LoadedCollection],
    settings: Mining,
    model: ColBERT | None,
    folder: Path,
    *,
    seed: int,
    progress: bool,
) -> None:
    """Write the rankings of every collection by every source to ``NAME-SOURCE.jsonl``.

    `model` may be None where it is not among the sources. Where groups are wanted, the rankings are
    of documents that may lead one.
    """
    for collection in collections:
        for source in settings.sources:
            out = folder / f"{collection.name}-{source}.jsonl"
            if not out.exists():
                mine(
                    "bm25" if source == "bm25" else _needed(model),
                    _ranked_for(collection, settings, seed),
                    collection.documents,
                    depth=settings.depth,
                    out=out,
                    index_path=folder / f"{collection.name}.cf" if source == "model" else None,
                    progress=progress,
                )


def _needed(model: ColBERT | None) -> ColBERT:
    if model is None:
        raise ValueError("`model` is among the sources, and None")
    return model


def _ranked_for(collection: LoadedCollection, settings: Mining, seed: int) -> Mapping[str, str]:
    if settings.group_size is None:
        return collection.queries
    asked_for = {name for judged in collection.positives.values() for name in judged}
    leaders = sorted(asked_for)
    np.random.default_rng(seed).shuffle(leaders)
    most = None if settings.groups is None else _SPARE * settings.groups
    return {name: collection.documents[name] for name in leaders[:most]}


def sample_all(
    collections: Sequence[LoadedCollection],
    settings: Mining,
    teachers: Teachers | None,
    mined: Path | None,
    folder: Path,
    *,
    seed: int,
    progress: bool,
) -> None:
    """Write tuples of every collection to ``NAME.jsonl``, scored if there are teachers.

    `mined` is None where the settings say where the tuples are.
    """
    for collection in collections:
        out = folder / f"{collection.name}.jsonl"
        if out.exists():
            continue
        try:
            if mined is None:
                path = (settings.tuples or {})[collection.name]
                given = given_tuples(collection, path, settings.group_size)
                _score(given, collection, teachers, out, progress=progress)
            else:
                rankings = _rankings(mined, collection.name, settings)
                _sample(rankings, collection, settings, teachers, out, seed, progress=progress)
        except ValueError as error:
            raise ValueError(f"collection {collection.name!r}: {error}") from error


def _rankings(mined: Path, name: str, settings: Mining) -> Rankings:
    rankings = [TupleFile(mined / f"{name}-{source}.jsonl") for source in settings.sources]
    return rankings[0] if len(rankings) == 1 else _by_turns(rankings)


def _sample(
    ranked: Rankings,
    collection: LoadedCollection,
    settings: Mining,
    teachers: Teachers | None,
    out: Path,
    seed: int,
    *,
    progress: bool,
) -> None:
    tuples = _draw(ranked, collection, settings, seed)
    scored = out.with_suffix(".all.jsonl") if settings.late else out
    _score(tuples, collection, teachers, scored, progress=progress)
    if settings.late:
        chosen = sample_tuples(
            ranked,
            collection.positives,
            nway=settings.nway,
            bands=settings.bands,
            margin=settings.margin,
            ratio=settings.ratio,
            teacher_scores=TupleFile(scored),
            seed=seed,
        )
        write_tuples(out, chosen)


def _score(
    tuples: Iterable[NWay],
    collection: LoadedCollection,
    teachers: Teachers | None,
    out: Path,
    *,
    progress: bool,
) -> None:
    if teachers is None:
        write_tuples(out, tuples)
        return
    score_with_teacher(
        tuples,
        teachers.of(collection),
        queries=collection.queries,
        documents=collection.documents,
        out=out,
        cache=out.parents[1] / "teacher-scores.sqlite",
        progress=progress,
    )


def _draw(
    rankings: Rankings, collection: LoadedCollection, settings: Mining, seed: int
) -> Iterator[NWay]:
    """Tuples without scores; where those decide, with all candidates as negatives."""
    if settings.group_size is not None:
        return sample_groups(
            rankings,
            collection.positives,
            nway=settings.nway,
            group_size=settings.group_size,
            depth=settings.depth,
            groups=settings.groups,
            seed=seed,
        )
    fill = None if settings.late else list(collection.documents)
    draws = (
        sample_tuples(
            rankings,
            collection.positives,
            nway=None if settings.late else settings.nway,
            bands=settings.bands,
            fill=fill,
            seed=seed + draw,
        )
        for draw in range(settings.tuples_per_positive)
    )
    return itertools.chain.from_iterable(draws)


def _by_turns(rankings: Sequence[Sequence[NWay]]) -> list[NWay]:
    """One ranking for each query: the best of each source, then the second best of each, ..."""
    found: dict[str, list[list[str]]] = {}
    for source in rankings:
        for ranking in source:
            found.setdefault(ranking.query_id, []).append(list(ranking.document_ids))
    return [NWay(query, tuple(_merged(each))) for query, each in found.items()]


def _merged(rankings: Sequence[Sequence[str]]) -> Iterator[str]:
    seen: set[str | None] = {None}
    for rank in itertools.zip_longest(*rankings):
        for name in rank:
            if name not in seen:
                seen.add(name)
                yield name


class Teachers:
    """The teachers of a recipe, each loaded once; what counts words does so for each collection.

    Parameters
    ----------
    parts : sequence of TeacherPart
    trained : Path, optional
        Folder of the stage that trained the one that is called "trained".
    device : str
    """

    def __init__(self, parts: Sequence[TeacherPart], trained: Path | None, device: str) -> None:
        self._parts = parts
        self._models = {
            number: _load_teacher(part, trained, device)
            for number, part in enumerate(parts)
            if part.model is not None
        }

    def of(self, collection: LoadedCollection) -> Teacher | CombinedTeacher:
        """The one that there is, with its own scores; or the sum of all."""
        teachers = [
            (self._models.get(number) or _make_teacher(part, collection), part.weight)
            for number, part in enumerate(self._parts)
        ]
        return teachers[0][0] if len(teachers) == 1 else CombinedTeacher(teachers)


def _load_teacher(part: TeacherPart, trained: Path | None, device: str) -> Teacher:
    name = resolve_model(str(part.model))
    if name == "trained" and trained is not None:
        name = str(trained / "final")
    if part.kind == "cross_encoder":
        return CrossEncoderTeacher(name, device=device)
    if part.kind == "bi_encoder":
        return BiEncoderTeacher(name, device=device)
    plain = {} if part.dim is None else {"dim": part.dim, **_PLAIN}
    return MaxSimTeacher(ColBERT.from_pretrained(name, device=device, **plain))


def _make_teacher(part: TeacherPart, collection: LoadedCollection) -> Teacher:
    if part.kind == "bm25":
        return BM25Teacher(collection.documents)
    return JudgementsTeacher(collection.queries, collection.documents, collection.positives)
