"""The query pipeline: a batch of queries goes through C++ in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from colbert_fast import _core
from colbert_fast.kernels.ops import InvertedLists

if TYPE_CHECKING:
    from colbert_fast.compress.codec import Codec
    from colbert_fast.search.params import SearchParams
    from colbert_fast.storage.segments import Segment

__all__ = ["Searcher"]

_BLOCK = 256  # queries in one call into C++: Ctrl-C is heard between calls


class Searcher:
    """Search over the arrays of one index, which are read in place and may be memory maps.

    Parameters
    ----------
    centroids : float32 (K, dim)
    weights : float32 (2 ** nbits,) or (16,), as in `ops.decompress`; None with `embeddings`
    codes : uint16 or int32 (n_tokens,)
    residuals : uint8 (n_tokens, dim * nbits // 8), or None with `embeddings`
    scales : uint8 (n_tokens,), or None where all are 1
    embeddings : float16 (n_tokens, dim), or None with `residuals`
    inverse_norms : uint8 (n_tokens,), or None with `embeddings`
    doclens : int32 (n_docs,)
    lists : InvertedLists
    """

    def __init__(
        self,
        *,
        centroids: NDArray[np.float32],
        weights: NDArray[np.float32] | None,
        codes: NDArray[np.uint16] | NDArray[np.int32],
        residuals: NDArray[np.uint8] | None,
        scales: NDArray[np.uint8] | None,
        embeddings: NDArray[np.float16] | None,
        inverse_norms: NDArray[np.uint8] | None,
        doclens: NDArray[np.int32],
        lists: InvertedLists,
    ) -> None:
        self._core = _core.Searcher(
            centroids=centroids,
            weights=weights,
            codes=codes,
            residuals=residuals,
            scales=scales,
            embeddings=embeddings,
            inverse_norms=inverse_norms,
            doclens=doclens,
            counts=lists.counts,
            offsets=lists.offsets,
            data=lists.data,
        )

    @classmethod
    def of(cls, segment: Segment, codec: Codec) -> Searcher:
        """The searcher over a segment that `codec` encoded."""
        columns = segment.columns
        return cls(
            centroids=codec.centroids,
            weights=getattr(codec, "weights", None),
            codes=columns["codes"],
            residuals=columns.get("residuals"),
            scales=columns.get("scales"),
            embeddings=columns.get("embeddings"),
            inverse_norms=columns.get("inverse_norms"),
            doclens=segment.doclens,
            lists=InvertedLists(segment.list_counts, segment.list_offsets, segment.list_data),
        )

    def search(
        self,
        queries: Sequence[NDArray[np.float32]],
        params: SearchParams,
        *,
        subset: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Documents by descending MaxSim over the decompressed vectors.

        Parameters
        ----------
        queries : float32 (nq, dim) each
        params
            Resolved parameters; what they mean is told there.
        subset : bool (n_docs,)
            Search only the documents that are True.

        Returns
        -------
        ids : int64 (n, k), filled up with -1
        scores : float32 (n, k), filled up with -inf
        """
        ids = np.empty((len(queries), params.k), np.int64)
        scores = np.empty((len(queries), params.k), np.float32)
        for start in range(0, len(queries), _BLOCK):
            block = slice(start, start + _BLOCK)
            self._search_block(queries[block], params, subset, ids[block], scores[block])
        return ids, scores

    def _search_block(
        self,
        queries: Sequence[NDArray[np.float32]],
        params: SearchParams,
        subset: NDArray[np.bool_] | None,
        ids: NDArray[np.int64],
        scores: NDArray[np.float32],
    ) -> None:
        starts = np.array([*accumulate(map(len, queries), initial=0)], np.int64)
        threshold = params.centroid_score_threshold
        self._core.search(
            np.concatenate(queries) if len(queries) > 1 else queries[0],
            starts,
            nprobe=params.nprobe,
            ndocs=params.ndocs,
            plaid=params.mode == "plaid",
            threshold=-np.inf if threshold is None else threshold,
            exhaustive=params.exhaustive,
            subset=subset,
            ids=ids,
            scores=scores,
        )
