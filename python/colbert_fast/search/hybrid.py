"""BM25 and late interaction together: reranking, and fusion of both rankings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from colbert_fast.errors import IndexFormatError
from colbert_fast.search.bm25 import best
from colbert_fast.search.params import TEXT_MODES, SearchParams
from colbert_fast.search.retrieve import padded, retrieve, score_candidates

if TYPE_CHECKING:
    from colbert_fast.search.snapshot import Snapshot

__all__ = ["find", "fuse", "retrieve_by_text"]

_DEPTH = 100  # of each ranking that is fused, at least


def find(
    snapshot: Snapshot,
    queries: Sequence[npt.NDArray[np.float32]],
    params: SearchParams,
    *,
    texts: Sequence[str] | None,
    candidates: Sequence[npt.NDArray[np.int64]] | None,
    subset: npt.NDArray[np.bool_] | None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Search as `params` say, or score the candidates; arguments and results as for `retrieve`.

    Raises
    ------
    IndexFormatError
        An inverted list is damaged; the message names its segment.
    """
    try:
        if candidates is not None:
            return score_candidates(snapshot, queries, candidates, params.k, subset)
        if texts is not None and params.mode in TEXT_MODES:
            return retrieve_by_text(snapshot, texts, queries, params, subset)
        return retrieve(snapshot, queries, params, subset)
    except RuntimeError as error:
        damage = re.match(r"`parts\[(\d+)\]\.lists`: (.*)", str(error))
        if damage is None:
            raise
        folder = snapshot.path / snapshot.manifest.segments[int(damage[1])].name
        raise IndexFormatError(
            f"{folder}: {damage[2]}; verify() says which file is damaged"
        ) from error


def retrieve_by_text(
    snapshot: Snapshot,
    texts: Sequence[str],
    queries: Sequence[npt.NDArray[np.float32]],
    params: SearchParams,
    subset: npt.NDArray[np.bool_] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Search in mode "rerank" or "hybrid"; arguments and results as those of `retrieve`.

    `texts` are the queries' own. In mode "rerank" the `ndocs` best documents by BM25 are scored
    exactly, so a query may get fewer than k hits.

    Raises
    ------
    ValueError
        The index holds documents, but no texts.
    """
    if snapshot.num_documents == 0:
        return retrieve(snapshot, queries, params, subset)
    if snapshot.bm25.num_texts == 0:
        raise ValueError(f"mode {params.mode!r} needs texts, and this index holds none")
    mask = snapshot.allowed(subset)
    if params.mode == "rerank":
        candidates = [best(snapshot.bm25.score(text), params.ndocs, mask) for text in texts]
        return score_candidates(snapshot, queries, candidates, params.k, mask)
    return _hybrid(snapshot, texts, queries, params, mask)


def _hybrid(
    snapshot: Snapshot,
    texts: Sequence[str],
    queries: Sequence[npt.NDArray[np.float32]],
    params: SearchParams,
    mask: npt.NDArray[np.bool_] | None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The union of both rankings' best, each document with both of its scores, fused."""
    depth = max(params.k, _DEPTH)
    dense = params._replace(k=depth, ndocs=max(params.ndocs, depth), mode="default")
    near, near_scores = retrieve(snapshot, queries, dense, mask)
    pools, others = [], []
    for text, ids in zip(texts, near, strict=True):
        lexical = snapshot.bm25.score(text)  # of all documents, so not to be kept
        pool = np.union1d(best(lexical, depth, mask), ids[ids >= 0])
        pools.append((pool, lexical[pool]))
        others.append(np.setdiff1d(pool, ids))
    far, far_scores = score_candidates(snapshot, queries, others, max(map(len, others)), mask)
    ids = np.concatenate((near, far), axis=1)
    maxsim = np.concatenate((near_scores, far_scores), axis=1)
    rows = []
    for row, (pool, lexical) in enumerate(pools):
        here = ids[row] >= 0
        union = ids[row][here]
        fused = fuse(lexical[np.searchsorted(pool, union)], maxsim[row][here], params.bm25_weight)
        order = np.lexsort((union, -fused))[: params.k]
        rows.append((union[order], fused[order]))
    return padded(rows, min(params.k, snapshot.num_documents))


def fuse(
    bm25: npt.NDArray[np.float32], maxsim: npt.NDArray[np.float32], bm25_weight: float
) -> npt.NDArray[np.float32]:
    """One score (n,) for n documents that have two: the weighted mean of their z-scores."""
    standard = [_standard(bm25), _standard(maxsim)]
    return np.average(standard, axis=0, weights=[bm25_weight, 1 - bm25_weight]).astype(np.float32)


def _standard(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    exact = scores.astype(np.float64)
    if len(exact) == 0:
        return exact
    centred: npt.NDArray[np.float64] = exact - exact.mean()
    return centred / (exact.std() or 1.0)
