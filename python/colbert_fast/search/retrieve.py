"""Run the pipeline so that every query gets as many hits as there are to be had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from colbert_fast.search.params import SearchParams

if TYPE_CHECKING:
    from colbert_fast.search.pipeline import Searcher

__all__ = ["retrieve"]

_WIDER = 4  # factor on nprobe for queries whose cells hold fewer than k documents
_WIDEST_SHARE = 4  # 1 / share of the cells from which probing gains nothing over reading all


def retrieve(
    searcher: Searcher,
    queries: Sequence[npt.NDArray[np.float32]],
    params: SearchParams,
    subset: npt.NDArray[np.bool_] | None,
    num_documents: int,
    num_centroids: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Search, with ``min(k, documents allowed)`` hits for every query.

    In mode "plaid" a subset of no more than `ndocs` documents is scored exactly, as Stanford's
    searcher does; mode "default" scans so few by itself. Otherwise a query whose probed cells hold
    too few documents is searched again with more, and exhaustively rather than with over a quarter
    of all cells.

    Returns
    -------
    int64 positions and float32 scores, both (queries, min(k, num_documents)), best first, filled
    up with -1 and -inf.
    """
    allowed = num_documents if subset is None else int(np.count_nonzero(subset))
    if params.k > num_documents:
        params = params._replace(k=num_documents)
    if allowed == 0:
        shape = len(queries), params.k
        return np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32)
    if allowed <= params.ndocs and params.mode == "plaid" and subset is not None:
        params = params._replace(exhaustive=True)
    pids, scores = searcher.search(queries, params, subset=subset)
    wanted = min(params.k, allowed)
    while not params.exhaustive:
        short = np.flatnonzero(pids[:, wanted - 1] < 0)
        if len(short) == 0:
            break
        nprobe = params.nprobe * _WIDER
        params = params._replace(nprobe=nprobe, exhaustive=nprobe > num_centroids // _WIDEST_SHARE)
        again = [queries[row] for row in short.tolist()]
        pids[short], scores[short] = searcher.search(again, params, subset=subset)
    return pids, scores
