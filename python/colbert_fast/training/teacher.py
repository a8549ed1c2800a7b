"""Score training tuples with a teacher; what is scored once is never scored again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import length_hint
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from colbert_fast.errors import UnknownDocumentError
from colbert_fast.training.data import NWay, read_tuples, write_tuples
from colbert_fast.training.teacher_cache import Pair, ScoreCache

__all__ = ["CombinedTeacher", "Teacher", "score_with_teacher"]

_BAR_DELAY = 2.0  # seconds before a bar shows


@runtime_checkable
class Teacher(Protocol):
    """Anything that scores pairs of texts, each by itself.

    Attributes
    ----------
    fingerprint : str
        Of all that its scores depend on: scores are cached under it.
    """

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, pairs: Sequence[Pair]) -> npt.NDArray[np.float32]:
        """float32 (len(pairs),) scores of (query, document) texts, the higher the better."""
        ...


@dataclass(frozen=True, init=False)
class CombinedTeacher:
    """Several teachers, whose scores are made comparable within each tuple and added.

    A teacher's scores of one tuple become z-scores there (all 0 where they are all equal), and the
    weighted sum of those is the tuple's. So this is no `Teacher`: one pair alone has no such score.
    Each teacher's own scores are cached, and other weights score nothing again.

    Parameters
    ----------
    parts : sequence of (Teacher, float)
        Teachers and their weights.
    """

    parts: tuple[tuple[Teacher, float], ...]

    def __init__(self, parts: Iterable[tuple[Teacher, float]]) -> None:
        object.__setattr__(self, "parts", tuple((each, float(weight)) for each, weight in parts))
        if not self.parts or not all(np.isfinite(weight) for _, weight in self.parts):
            raise ValueError(f"parts: want teachers with finite weights, got {self.parts}")

    def combine(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Turn the scores of one tuple, float64 (len(parts), n), into its combined ones, (n,)."""
        centred = scores - scores.mean(axis=1, keepdims=True)
        spread = scores.std(axis=1, keepdims=True)
        weights = np.array([weight for _, weight in self.parts])
        combined: npt.NDArray[np.float64] = weights @ (centred / np.where(spread > 0, spread, 1))
        return combined


def score_with_teacher(
    tuples: Iterable[NWay] | str | Path,
    teacher: Teacher | CombinedTeacher,
    *,
    queries: Mapping[str, str],
    documents: Mapping[str, str],
    out: str | Path,
    layout: Literal["stanford", "pylate"] = "stanford",
    cache: str | Path | None = None,
    window: int = 1024,
    progress: bool = True,
) -> Path:
    """Write tuples with a teacher's scores, in their order.

    Tuples are read as a stream, and a window of them is scored at a time: each pair of texts once,
    longest first, and only what the cache does not know. A window's scores are in the cache before
    the next one starts, so a killed run goes on with the window that it was at when it is started
    again. `out` appears when all is done.

    Parameters
    ----------
    tuples : iterable of NWay, or path
        Scores that they have already are replaced.
    teacher : Teacher or CombinedTeacher
    queries, documents : mapping of str to str
        Texts by id.
    out : str or Path
        The file to write; one that is there is replaced.
    layout : {"stanford", "pylate"}
        Of that file.
    cache : str or Path, optional
        SQLite file of the scores, which later runs and rounds may share; by default `out` with
        ".scores.sqlite" appended. Some 60 bytes a pair.
    window : int
        Pairs that a teacher gets in one call, at least (tuples are not split).
    progress : bool
        Show a bar when it takes over two seconds.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    UnknownDocumentError
        There is no text for an id; the message names it and the tuple.
    ValueError
        The teacher's scores are not finite or not one per pair; or `cache` is another file.
    TypeError
        `teacher` is not callable or has no fingerprint.
    """
    if not isinstance(window, int) or window < 1:
        raise ValueError(f"window: want an int of at least 1, got {window!r}")
    combined = teacher if isinstance(teacher, CombinedTeacher) else None
    for part, _ in combined.parts if combined else ((teacher, 1.0),):
        _check_teacher(part)
    out = Path(out)
    path = out.with_name(f"{out.name}.scores.sqlite") if cache is None else Path(cache)
    source = read_tuples(tuples) if isinstance(tuples, (str, Path)) else tuples
    bar = tqdm(
        total=length_hint(source, 0) or None,
        desc="score",
        unit="tuple",
        delay=_BAR_DELAY,
        disable=not progress,
    )
    with bar, ScoreCache(path) as scores:
        name = f" of {tuples}" if isinstance(tuples, (str, Path)) else ""
        read = _with_texts(source, queries, documents, name)
        write_tuples(out, _scored(read, teacher, scores, window, bar), layout=layout)
    return out


def _check_teacher(teacher: object) -> None:
    if not isinstance(teacher, Teacher) or not isinstance(teacher.fingerprint, str):
        raise TypeError(
            "teacher: want a callable on (query, document) pairs with a str `fingerprint`, got "
            f"{type(teacher).__name__}"
        )


def _with_texts(
    tuples: Iterable[NWay], queries: Mapping[str, str], documents: Mapping[str, str], name: str
) -> Iterator[tuple[NWay, list[Pair]]]:
    """Each tuple and its pairs of texts."""
    for number, each in enumerate(tuples, 1):
        where = f"tuple {number}{name} (query {each.query_id!r})"
        query = _text("queries", queries, each.query_id, where)
        yield (
            each,
            [(query, _text("documents", documents, key, where)) for key in each.document_ids],
        )


def _text(name: str, texts: Mapping[str, str], key: str, where: str) -> str:
    try:
        return texts[key]
    except KeyError as error:
        raise UnknownDocumentError(f"{name}: no text for the id {key!r} of {where}") from error


def _scored(
    tuples: Iterator[tuple[NWay, list[Pair]]],
    teacher: Teacher | CombinedTeacher,
    cache: ScoreCache,
    window: int,
    bar: tqdm[None],
) -> Iterator[NWay]:
    for group in _windows(tuples, window):
        distinct = list(dict.fromkeys(pair for _, pairs in group for pair in pairs))
        if isinstance(teacher, CombinedTeacher):
            tables = [_scores(part, distinct, cache) for part, _ in teacher.parts]
        else:
            tables = [_scores(teacher, distinct, cache)]
        for each, pairs in group:
            rows = np.array([[table[pair] for pair in pairs] for table in tables])
            row = teacher.combine(rows) if isinstance(teacher, CombinedTeacher) else rows[0]
            yield each._replace(scores=tuple(row.tolist()))
        bar.update(len(group))


def _windows(
    tuples: Iterator[tuple[NWay, list[Pair]]], window: int
) -> Iterator[list[tuple[NWay, list[Pair]]]]:
    group, size = [], 0
    for each, pairs in tuples:
        group.append((each, pairs))
        size += len(pairs)
        if size >= window:
            yield group
            group, size = [], 0
    if group:
        yield group


def _scores(teacher: Teacher, pairs: Sequence[Pair], cache: ScoreCache) -> dict[Pair, float]:
    """The score of each pair, from the cache or the teacher."""
    scores = cache.get(teacher.fingerprint, pairs)
    missing = [pair for pair in pairs if pair not in scores]
    # Longest first: running out of memory happens at once or never, and batches pad little.
    missing.sort(key=lambda pair: -len(pair[0]) - len(pair[1]))
    if missing:
        found = np.asarray(teacher(missing))
        _check_scores(found, missing)
        new = dict(zip(missing, found.astype(float).tolist(), strict=True))
        cache.put(teacher.fingerprint, new)
        scores.update(new)
    return scores


def _check_scores(scores: npt.NDArray[np.generic], pairs: Sequence[Pair]) -> None:
    if scores.shape != (len(pairs),) or scores.dtype.kind != "f":
        raise ValueError(
            f"teacher: want float ({len(pairs)},) for {len(pairs)} pairs, got {scores.dtype} "
            f"{scores.shape}"
        )
    finite = np.isfinite(scores)
    if not finite.all():
        place = int(np.argmin(finite))
        query, document = pairs[place]
        raise ValueError(
            f"teacher: {scores[place]} for the query {query[:60]!r} and the document "
            f"{document[:60]!r}"
        )
