"""Run the pipeline so that every query gets as many hits as there are to be had."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from colbert_fast.search.params import SearchParams

if TYPE_CHECKING:
    from colbert_fast.search.snapshot import Snapshot

__all__ = ["padded", "retrieve", "score_candidates"]

_WIDER = 4  # factor on nprobe for queries whose cells hold fewer than k documents
# Subsets widen to so many, kMostProbes of probe.h; beyond it centroids are scored in float32 too.
_MOST_PROBES = 64
_WIDEST_SHARE = 4  # 1 / share of the cells from which probing gains nothing over reading all

_NONE = (np.empty(0, np.int64), np.empty(0, np.float32))


def retrieve(
    snapshot: Snapshot,
    queries: Sequence[npt.NDArray[np.float32]],
    params: SearchParams,
    subset: npt.NDArray[np.bool_] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Search, with ``min(k, documents allowed)`` hits for every query.

    `subset`, bool (n_rows,), is by position; deleted documents are never found.

    In mode "plaid" a subset of no more than `ndocs` documents is scored exactly, as Stanford's
    searcher does; mode "default" scans so few by itself. Of a larger subset the best documents are
    farther from the query than the best of all: mode "default" probes nprobe / sqrt(share
    allowed) cells, up to 64 (or nprobe, if that is more), which keeps recall (10 % of 25,000
    documents: .948 at the nprobe 4 of all, .995 at 13). A query whose probed cells hold too few
    documents is searched again with more, and exhaustively rather than with over a quarter of all
    cells.

    Returns
    -------
    int64 positions and float32 scores, both (queries, min(k, documents in the index)), best first,
    filled up with -1 and -inf.
    """
    params = params._replace(k=min(params.k, snapshot.num_documents))
    subset = snapshot.allowed(subset)
    allowed = snapshot.num_documents if subset is None else int(np.count_nonzero(subset))
    wanted = min(params.k, allowed)
    if wanted == 0:
        return padded([_NONE] * len(queries), params.k)
    searcher, num_centroids = snapshot.searcher, snapshot.manifest.num_centroids
    if allowed <= params.ndocs and params.mode == "plaid" and allowed < snapshot.manifest.num_rows:
        params = params._replace(exhaustive=True)
    if params.mode == "default":
        share = allowed / snapshot.manifest.num_rows
        wider = min(round(params.nprobe / math.sqrt(share)), _MOST_PROBES)
        params = params._replace(nprobe=max(params.nprobe, wider))
    pids, scores = searcher.search(queries, params, subset=subset)
    while not params.exhaustive:
        short = np.flatnonzero(pids[:, wanted - 1] < 0)
        if len(short) == 0:
            break
        nprobe = params.nprobe * _WIDER
        params = params._replace(nprobe=nprobe, exhaustive=nprobe > num_centroids // _WIDEST_SHARE)
        again = [queries[row] for row in short.tolist()]
        pids[short], scores[short] = searcher.search(again, params, subset=subset)
    return pids, scores


def score_candidates(
    snapshot: Snapshot,
    queries: Sequence[npt.NDArray[np.float32]],
    candidates: Sequence[npt.NDArray[np.int64]],
    k: int,
    subset: npt.NDArray[np.bool_] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Score each query's own documents, exactly but those whose int8 scores leave them no chance.

    `candidates`, int64 (m,) each, are positions in any order. Documents that are deleted, without
    vectors or outside `subset`, bool (n_rows,), are left out.

    Returns
    -------
    int64 positions and float32 scores, both (queries, min(k, documents in the index)), best first,
    filled up with -1 and -inf.
    """
    k = min(k, snapshot.num_documents)
    if k == 0:
        return padded([_NONE] * len(queries), 0)
    mask = snapshot.allowed(subset)
    params = SearchParams.resolve(k)
    return snapshot.searcher.search(queries, params, subset=mask, candidates=candidates)


def padded(
    rows: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]], k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Rows of at most `k` positions and scores as arrays (rows, k), filled up with -1 and -inf."""
    pids = np.full((len(rows), k), -1, np.int64)
    scores = np.full((len(rows), k), -np.inf, np.float32)
    for row, (positions, values) in enumerate(rows):
        pids[row, : len(positions)] = positions
        scores[row, : len(values)] = values
    return pids, scores
