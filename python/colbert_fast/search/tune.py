"""Find out what recall costs on an index, with queries made from the index itself.

A query for tuning has to be as hard as a real one, in the two ways in which a search can lose a
document: no query token probes one of its centroids (`nprobe`), or its approximate score ranks it
too low (`ndocs`). A passage's own tokens are far too easy: they lie close to their centroids, and
32 different ones probe widely. Independent noise does not help: it is the same for all documents.
What real queries look like, and these too: few different tokens, repeated as [MASK] tokens repeat
theirs; each as far from its centroid as real ones are, in the directions in which tokens differ:
the sum of a token of one document, a token of a second, and one of a third that all of the query's
tokens have in common, as contextual vectors share a subject. The three documents are easy hits, so
recall is counted without them.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from colbert_fast import _core
from colbert_fast.search.params import SearchParams, check_positive, check_recall
from colbert_fast.search.retrieve import retrieve
from colbert_fast.search.tuning import Curve, OperatingPoint, Tuning

if TYPE_CHECKING:
    from colbert_fast.search.snapshot import Snapshot

__all__ = ["Queries", "TuneOptions", "calibrate", "check_not_empty", "pseudo_queries", "tune"]

QUERY_ROWS = 32
_FEWEST, _MOST = 10, 20  # different tokens in a query
_ROUNDS, _TIMED = 3, 24  # each point is timed so often, on so many queries
_TIMED_EXHAUSTIVE = 4
_CONFIDENCE = 1.645  # standard errors below the mean: 95 % on one side
_WIDEST = 256  # nprobe at most
_LEAST_GAIN = 1e-3  # of recall, from doubling ndocs or nprobe; less is not worth it

Vectors = Sequence[npt.NDArray[np.float32]]
Retrieve = Callable[[Vectors, SearchParams], npt.NDArray[np.int64]]


@dataclasses.dataclass(frozen=True)
class Queries:
    """Queries, float32 (tokens, dim) each, and the documents that each leaves out of account.

    `own` is int64 (n, a) of positions; a is 0 for queries that were not made from documents.
    """

    vectors: Vectors
    own: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class TuneOptions:
    """The options of `Index.tune`, which tells what they are."""

    recall: float
    k: int | Iterable[int]
    num_queries: int
    seed: int
    progress: bool


def tune(snapshot: Snapshot, queries: Vectors | None, options: TuneOptions) -> Tuning:
    """Measure the curves of an index.

    Parameters
    ----------
    snapshot
        The index.
    queries : float32 (tokens, dim) each
        What to search for; None: make queries from the documents.
    options
        The rest.

    Raises
    ------
    TypeError, ValueError
        An option is of the wrong type or out of range, or there are no queries or documents.
    """
    target = check_recall(options.recall)
    given = options.k if isinstance(options.k, Iterable) else [options.k]
    ks = sorted({check_positive("k", each) for each in given})
    if not ks:
        raise ValueError("k: expected an int or several, got none")
    count = check_positive("num_queries", options.num_queries)
    check_not_empty(snapshot)
    if queries is None:
        asked = pseudo_queries(snapshot, count, options.seed)
    else:
        asked = Queries(queries, np.empty((len(queries), 0), np.int64))
    if not asked.vectors:
        raise ValueError("queries: there are none")
    curves = calibrate(
        lambda rows, params: retrieve(snapshot, rows, params)[0],
        asked,
        ks=ks,
        target=target,
        num_documents=snapshot.num_documents,
        num_centroids=snapshot.manifest.num_centroids,
        progress=options.progress,
    )
    return Tuning(
        curves,
        target,
        num_documents=snapshot.num_documents,
        num_queries=len(asked.vectors),
        seed=int(options.seed),
        pseudo=queries is None,
        threads=_core.get_num_threads(),
        isa=_core.isa(),
    )


def check_not_empty(snapshot: Snapshot) -> None:
    """Raise ValueError unless a search can find something."""
    if not snapshot.num_documents:
        raise ValueError(f"{snapshot.path}: the index is empty; there is nothing to measure")


def pseudo_queries(snapshot: Snapshot, count: int, seed: int) -> Queries:
    """Make `count` queries of the documents of an index; see the head of this module."""
    rng = np.random.default_rng(seed)

    def tokens_of(position: int, n: int) -> npt.NDArray[np.float32]:
        vectors = snapshot.decode(position)
        return vectors[rng.integers(len(vectors), size=n)]

    positions = snapshot.positions
    own = rng.choice(positions[snapshot.doclens[positions] > 0], (count, 3))
    queries = []
    for first, second, common in own.tolist():
        distinct = int(rng.integers(_FEWEST, _MOST + 1))
        mixed = tokens_of(first, distinct) + tokens_of(second, distinct) + tokens_of(common, 1)
        # Tokens may cancel each other: any direction will do then.
        mixed += 1e-3 * rng.standard_normal(mixed.shape, np.float32)
        mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
        queries.append(mixed[rng.integers(distinct, size=QUERY_ROWS)])
    return Queries(queries, own)


def calibrate(
    retrieve: Retrieve,
    queries: Queries,
    *,
    ks: Sequence[int],
    target: float,
    num_documents: int,
    num_centroids: int,
    progress: bool,
) -> tuple[Curve, ...]:
    """Measure recall against exhaustive search, and time, over a grid of nprobe and ndocs.

    Parameters
    ----------
    retrieve
        Search: queries and parameters to int64 positions (n, k), filled up with -1.
    queries
        What to search for.
    ks
        A curve for each, ascending.
    target
        Recall beyond which the grid need not go.
    num_documents, num_centroids
        Of the index.
    progress
        Show a bar on stderr.
    """
    extra = queries.own.shape[1]
    deepest = SearchParams.resolve(ks[-1] + extra, exhaustive=True)
    truth = retrieve(queries.vectors, deepest)
    curves = []
    with tqdm(desc="tune", unit="points", disable=not progress) as bar:
        for k in ks:
            right = _without(truth, queries.own, k)

            def recall_of(nprobe: int, ndocs: int, k: int = k, right: Rows = right) -> float:
                bar.update()
                params = SearchParams.resolve(k + extra, nprobe=nprobe, ndocs=ndocs)
                found = _without(retrieve(queries.vectors, params), queries.own, k)
                return _least_recall(found, right)

            grid = dict(_walk(recall_of, k + extra, target, num_documents, num_centroids))
            curves.append(_timed(retrieve, queries.vectors, k, grid))
    return tuple(curves)


Rows = list[list[int]]


def _walk(
    recall_of: Callable[[int, int], float],
    k: int,
    target: float,
    num_documents: int,
    num_centroids: int,
) -> Iterator[tuple[tuple[int, int], float]]:
    """Yield points of the grid and their recall: rows of one nprobe, ndocs doubling in each.

    A row ends at the target, or where more documents gain nothing. The grid ends with a row that
    gains nothing on the one before: not where the target is reached first, as a higher nprobe may
    get there with far fewer documents.
    """
    before: dict[int, float] = {}
    nprobe = 1
    while nprobe <= min(_WIDEST, num_centroids):
        row: dict[int, float] = {}
        best, ndocs = -1.0, _power_of_two(k)
        while ndocs < num_documents:
            row[ndocs] = recall = recall_of(nprobe, ndocs)
            yield (nprobe, ndocs), recall
            if recall >= target or recall < best + _LEAST_GAIN:
                break
            best, ndocs = recall, 2 * ndocs
        if all(recall < before.get(at, -1.0) + _LEAST_GAIN for at, recall in row.items()):
            return
        before, nprobe = row, 2 * nprobe


def _power_of_two(k: int) -> int:
    """Where ndocs starts: a power of two from 32 that is no less than k."""
    return int(max(32, 1 << (k - 1).bit_length()))


def _without(found: npt.NDArray[np.int64], own: npt.NDArray[np.int64], k: int) -> Rows:
    """The first k positions of each row that are not the query's own documents."""
    rows = []
    for row, left_out in zip(found.tolist(), own.tolist(), strict=True):
        rows.append([pid for pid in row if pid >= 0 and pid not in left_out][:k])
    return rows


def _least_recall(found: Rows, right: Rows) -> float:
    """The lower end of the 95 % interval of mean recall, from as many queries as there are.

    Where nearly all are perfect, the spread seen says little about the rare ones that are not: it
    is never taken for less than that of one more query that finds half.
    """
    shares = [len({*a} & {*b}) / len(b) for a, b in zip(found, right, strict=True) if b]
    mean = float(np.mean(shares))
    deviation = float(np.std([*shares, 0.5]))
    return max(0.0, mean - _CONFIDENCE * deviation / math.sqrt(len(shares)))


def _timed(
    retrieve: Retrieve, vectors: Vectors, k: int, grid: dict[tuple[int, int], float]
) -> Curve:
    """The curve, from queries timed one by one.

    Every round times each point, so that a spell of other work on the machine does not fall on one
    of them alone, and the best round counts.
    """
    best = dict.fromkeys(grid, np.inf)
    for _ in range(_ROUNDS):
        for nprobe, ndocs in grid:
            params = SearchParams.resolve(k, nprobe=nprobe, ndocs=ndocs)
            spent = _median_microseconds(retrieve, vectors[:_TIMED], params)
            best[nprobe, ndocs] = min(best[nprobe, ndocs], spent)
    points = [OperatingPoint(*at, recall, best[at]) for at, recall in grid.items()]
    everything = SearchParams.resolve(k, exhaustive=True)
    exhaustive = _median_microseconds(retrieve, vectors[:_TIMED_EXHAUSTIVE], everything)
    return Curve.of(k, points, exhaustive)


def _median_microseconds(retrieve: Retrieve, vectors: Vectors, params: SearchParams) -> float:
    spent = []
    for query in vectors:
        start = time.perf_counter_ns()
        retrieve([query], params)
        spent.append((time.perf_counter_ns() - start) / 1000)
    return float(np.median(spent))
