"""Training tuples from rankings: a positive, and negatives drawn from bands of ranks."""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from colbert_fast.training.tuples import NWay

__all__ = ["Band", "Rankings", "check_draw", "each_ranking", "sample_tuples"]

logger = logging.getLogger(__name__)

Band = tuple[int, int, float]
"""First rank (from 0), the rank after the last, and the share of the negatives from between."""

Rankings = Iterable[NWay] | Mapping[str, Sequence[tuple[str, float]]]
"""Each query's documents, best first: what `mine` returns, or what `evaluation.retrieve` does."""

Positives = Mapping[str, Mapping[str, int] | Collection[str]]
TeacherScores = Mapping[str, Mapping[str, float]]


def sample_tuples(
    rankings: Rankings,
    positives: Positives,
    *,
    nway: int | None,
    bands: Sequence[Band] = ((0, 20, 0.5), (20, 200, 0.5)),
    margin: float | None = None,
    ratio: float | None = None,
    teacher_scores: TeacherScores | Iterable[NWay] | None = None,
    positives_per_query: int | None = None,
    fill: Sequence[str] | None = None,
    seed: int = 0,
) -> Iterator[NWay]:
    """Stream a tuple for every positive of every ranked query: it first, then negatives by rank.

    What is left out is counted and logged when the stream ends.

    Parameters
    ----------
    rankings
        Each query's documents, best first.
    positives
        Query id to its positives: ids, or {id: grade}, where grades below 1 are none. None of them
        is ever a negative of the query.
    nway
        Documents of a tuple. None: the positive and all candidates of the bands, as a teacher is
        to see them before negatives are chosen by its scores.
    bands
        Where negatives come from. Ranks are counted without the positives. A band that is too
        short is made up for by the others; what is left of the shares after rounding goes to bands
        at random.
    margin, ratio
        Leave out documents that are perhaps positives too: those whose teacher score is above the
        positive's minus `margin`, or above `ratio` times the positive's (arXiv 2407.15831; scores
        must be positive). Both need `teacher_scores`.
    teacher_scores
        Query id to {document id: score}, or scored tuples. They go into the tuples.
    positives_per_query
        At most so many tuples for a query, by default one for each positive.
    fill
        Ids to draw negatives from at random where the bands have too few.
    seed
        What is drawn depends on it, the query and the positive, not on the order of the rankings.

    Raises
    ------
    ValueError
        An argument is out of range, a teacher's score is missing, or no tuple can be made at all.
    """
    check_draw(nway, bands)
    if positives_per_query is not None and positives_per_query < 1:
        raise ValueError(f"`positives_per_query` must be at least 1; got {positives_per_query}")
    if (margin is not None or ratio is not None) and teacher_scores is None:
        raise ValueError("`margin` and `ratio` compare scores: pass `teacher_scores` too")
    if fill is not None and teacher_scores is not None:
        raise ValueError("`fill` brings documents that `teacher_scores` do not know: pass only one")
    if teacher_scores is not None and not isinstance(teacher_scores, Mapping):
        teacher_scores = _by_query(teacher_scores)
    sampler = _Sampler(nway, bands, margin, ratio, teacher_scores, fill, seed)
    return _sample(rankings, positives, sampler, positives_per_query)


def check_draw(nway: int | None, bands: Sequence[Band]) -> None:
    """Raise ValueError for what `sample_tuples` cannot draw from."""
    if nway is not None and nway < 2:
        raise ValueError(f"`nway` must be at least 2, a positive and a negative; got {nway}")
    last = 0
    for band in bands:
        if len(band) != 3 or not last <= band[0] < band[1] or not band[2] >= 0:
            raise ValueError(
                "`bands` must be (first rank, rank after the last, share), ascending and apart, "
                f"with shares of 0 or more; got {list(bands)}"
            )
        last = band[1]
    total = sum(share for _, _, share in bands)
    if not math.isclose(total, 1, abs_tol=1e-6):
        raise ValueError(f"the shares of `bands` must add up to 1; {list(bands)} make {total:g}")


def _by_query(tuples: Iterable[NWay]) -> dict[str, dict[str, float]]:
    """The scores of scored tuples, those of one query together."""
    scores: dict[str, dict[str, float]] = {}
    for item in tuples:
        if item.scores is None:
            raise ValueError(f"`teacher_scores` has no scores for query {item.query_id!r}")
        known = scores.setdefault(item.query_id, {})
        known.update(zip(item.document_ids, item.scores, strict=True))
    return scores


@dataclass(frozen=True)
class _Sampler:
    """What to draw; see `sample_tuples`."""

    nway: int | None
    bands: Sequence[Band]
    margin: float | None
    ratio: float | None
    teacher_scores: TeacherScores | None
    fill: Sequence[str] | None
    seed: int

    def tuple_of(
        self, query: str, positive: str, candidates: Sequence[str], positives: Collection[str]
    ) -> NWay | None:
        """The tuple of one positive; None if there are too few candidates."""
        pools = [list(candidates[start:stop]) for start, stop, _ in self.bands]
        if self.margin is not None or self.ratio is not None:
            if not any(pools):
                return None  # nor does the positive have a score, where all candidates got theirs
            limit = self._limit(query, positive)
            pools = [[d for d in pool if self._score(query, d) <= limit] for pool in pools]
        negatives = self._draw(query, positive, pools, positives)
        if negatives is None:
            return None
        documents = (positive, *negatives)
        if self.teacher_scores is None:
            return NWay(query, documents)
        return NWay(query, documents, tuple(self._score(query, each) for each in documents))

    def _limit(self, query: str, positive: str) -> float:
        """The highest teacher score of a negative."""
        score = self._score(query, positive)
        limits = [math.inf]
        if self.margin is not None:
            limits.append(score - self.margin)
        if self.ratio is not None:
            if score <= 0:
                raise ValueError(
                    f"`ratio` needs positive scores: {positive!r} has {score:g} for query "
                    f"{query!r}; use `margin`"
                )
            limits.append(score * self.ratio)
        return min(limits)

    def _score(self, query: str, document: str) -> float:
        scores = self.teacher_scores or {}
        try:
            return scores[query][document]
        except KeyError:
            raise ValueError(
                f"`teacher_scores` has no score of document {document!r} for query {query!r}"
            ) from None

    def _draw(
        self,
        query: str,
        positive: str,
        pools: Sequence[Sequence[str]],
        positives: Collection[str],
    ) -> list[str] | None:
        """The negatives by rank, then those of `fill`; None if there are too few."""
        everything = [each for pool in pools for each in pool]
        if self.nway is None:
            return everything or None
        wanted = self.nway - 1
        rng = np.random.default_rng((self.seed, zlib.crc32(f"{query}\t{positive}".encode())))
        if len(everything) < wanted:
            return self._filled(everything, wanted, positives, rng)
        chosen: set[int] = set()
        first = 0
        for pool, count in zip(pools, self._counts(wanted, rng), strict=True):
            picked = rng.choice(len(pool), min(count, len(pool)), replace=False)
            chosen.update((first + picked).tolist())
            first += len(pool)
        others = [place for place in range(len(everything)) if place not in chosen]
        chosen.update(rng.choice(others, wanted - len(chosen), replace=False).tolist())
        return [everything[place] for place in sorted(chosen)]

    def _counts(self, wanted: int, rng: np.random.Generator) -> list[int]:
        """Negatives of each band."""
        exact = np.array([share for _, _, share in self.bands]) * wanted
        counts = np.floor(exact + 1e-9).astype(int)
        left = wanted - int(counts.sum())
        if left > 0:
            rest = np.maximum(exact - counts, 0)
            counts[rng.choice(len(rest), left, replace=False, p=rest / rest.sum())] += 1
        return [int(count) for count in counts]

    def _filled(
        self, found: list[str], wanted: int, positives: Collection[str], rng: np.random.Generator
    ) -> list[str] | None:
        if self.fill is None:
            return None
        taken = {*found, *positives}
        # So many different places that enough of them are not taken, if there are so many.
        draws = min(4 * (wanted + len(taken)), len(self.fill))
        for place in rng.choice(len(self.fill), draws, replace=False).tolist():
            each = self.fill[place]
            if len(found) < wanted and each not in taken:
                taken.add(each)
                found.append(each)
        return found if len(found) == wanted else None


@dataclass
class _Report:
    """What came of the queries."""

    tuples: int = 0
    ranked: set[str] = field(default_factory=set)
    without_positive: list[str] = field(default_factory=list)
    too_few: list[str] = field(default_factory=list)

    def log(self, positives: Positives) -> None:
        """Say what was left out; ValueError if that is everything."""
        unranked = [query for query in positives if query not in self.ranked]
        for queries, what in (
            (self.without_positive, "ranked queries have no positive"),
            (unranked, "queries with positives have no ranking"),
            (self.too_few, "positives have too few candidates: mine deeper, or pass `fill`"),
        ):
            if queries:
                logger.warning("%d %s; the first is of query %r", len(queries), what, queries[0])
        if self.tuples == 0:
            raise ValueError(
                f"no tuple: of {len(self.ranked)} ranked queries {len(self.without_positive)} have "
                f"no positive, and {len(self.too_few)} positives have too few candidates"
            )


def _sample(
    rankings: Rankings, positives: Positives, sampler: _Sampler, most: int | None
) -> Iterator[NWay]:
    report = _Report()
    for query, ranking in each_ranking(rankings):
        report.ranked.add(query)
        good = _positives_of(positives.get(query, ()))
        if not good:
            report.without_positive.append(query)
            continue
        excluded = set(good)
        candidates = [each for each in dict.fromkeys(ranking) if each not in excluded]
        for positive in _some(good, most, sampler.seed, query):
            item = sampler.tuple_of(query, positive, candidates, excluded)
            if item is None:
                report.too_few.append(query)
                continue
            report.tuples += 1
            yield item
    report.log(positives)


def each_ranking(rankings: Rankings) -> Iterator[tuple[str, Sequence[str]]]:
    """Each query's id and its documents, best first."""
    if isinstance(rankings, Mapping):
        for query, ranking in rankings.items():
            yield query, [document for document, _ in ranking]
    else:
        for item in rankings:
            yield item.query_id, item.document_ids


def _positives_of(judged: Mapping[str, int] | Collection[str]) -> list[str]:
    if isinstance(judged, Mapping):
        return [document for document, grade in judged.items() if grade > 0]
    if isinstance(judged, str):
        raise TypeError(f"`positives` must hold collections of ids for a query; got {judged!r}")
    return list(judged)


def _some(good: list[str], most: int | None, seed: int, query: str) -> list[str]:
    if most is None or len(good) <= most:
        return good
    rng = np.random.default_rng((seed, zlib.crc32(query.encode())))
    return [good[place] for place in sorted(rng.choice(len(good), most, replace=False).tolist())]
