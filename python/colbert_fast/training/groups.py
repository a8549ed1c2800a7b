"""Groups of queries with the same documents: each document is encoded once for all of them.

On a CPU encoding is nearly all of a training step. A tuple of eight documents costs its query eight
encodings; sixteen queries that share eight neighbouring documents cost half a one each, and all of
their negatives are hard, since neighbours are alike.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import numpy as np

from colbert_fast.training.sampling import Rankings, each_ranking
from colbert_fast.training.tuples import NWay

__all__ = ["sample_groups"]

logger = logging.getLogger(__name__)


def sample_groups(
    neighbours: Rankings,
    positives: Mapping[str, Mapping[str, int]],
    *,
    nway: int = 8,
    group_size: int = 16,
    depth: int = 24,
    groups: int | None = None,
    seed: int = 0,
) -> Iterator[NWay]:
    """Stream tuples in groups of `group_size`, for `TrainingConfig.group_size`.

    A group's documents are one of the collection and others drawn from those nearest to it; its
    queries are drawn from those with a positive among them. Documents lead groups in random order,
    each at most one; those whose group has too few queries are passed over.

    Parameters
    ----------
    neighbours : rankings
        Documents near each document, by its id: what `mine` finds with documents as queries.
    positives : mapping
        Query id to its positives, {id: grade}; those of grade 0 or less are none.
    nway : int
        Documents of a group, and so of every tuple.
    group_size : int
        Queries of a group.
    depth : int
        Nearest documents to draw from.
    groups : int, optional
        At most so many; by default as many as there are documents to lead one.
    seed : int
        The same rankings, positives and seed give the same tuples.

    Yields
    ------
    NWay
        The best positive first, then the other documents of the group; no scores.

    Raises
    ------
    ValueError
        An argument is out of range, or no group has enough queries.
    """
    for name, value, least in (
        ("nway", nway, 2),
        ("group_size", group_size, 1),
        ("groups", 1 if groups is None else groups, 1),
    ):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}; got {value}")
    if depth < nway - 1:
        raise ValueError(f"`depth` must be at least {nway - 1}, for `nway` = {nway}; got {depth}")
    asked_by: dict[str, list[str]] = {}
    for query, judged in positives.items():
        for document, grade in judged.items():
            if grade > 0:
                asked_by.setdefault(document, []).append(query)
    near = {
        name: [each for each in found if each != name] for name, found in each_ranking(neighbours)
    }
    rng = np.random.default_rng(seed)
    leaders, made, longest, most = list(near), 0, 0, 0
    for place in rng.permutation(len(leaders)).tolist():
        documents = _members(leaders[place], near[leaders[place]][:depth], nway, rng)
        queries = list(dict.fromkeys(q for each in documents for q in asked_by.get(each, ())))
        longest = max(longest, len(documents))
        most = max(most, len(queries))
        if len(documents) < nway or len(queries) < group_size:
            continue
        if made == groups:
            break
        made += 1
        for chosen in rng.choice(len(queries), group_size, replace=False).tolist():
            yield _tuple_of(queries[chosen], documents, positives)
    if longest < nway:
        raise ValueError(
            f"no group of {nway} documents: the longest ranking gives {longest}; want more "
            "documents, or a smaller `nway`"
        )
    if made == 0:
        raise ValueError(
            f"no group: the {nway} documents of one are asked for by at most {most} queries, not "
            f"{group_size} ({len(positives)} queries have {len(asked_by)} positives in all); want "
            "more judgements, a smaller `group_size` or a larger `nway`"
        )
    if groups is not None and made < groups:
        logger.warning(
            "%d groups, not %d: around the other documents there are fewer than %d queries",
            made,
            groups,
            group_size,
        )
    logger.info("%d groups of %d documents that might lead one", made, len(leaders))


def _members(leader: str, near: list[str], nway: int, rng: np.random.Generator) -> list[str]:
    count = min(nway - 1, len(near))
    return [leader, *(near[i] for i in rng.choice(len(near), count, replace=False).tolist())]


def _tuple_of(query: str, documents: list[str], positives: Mapping[str, Mapping[str, int]]) -> NWay:
    judged = positives[query]
    best = max(documents, key=lambda name: judged.get(name, 0))
    return NWay(query, (best, *(name for name in documents if name != best)))
