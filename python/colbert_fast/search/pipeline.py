"""The query pipeline: a batch of queries goes through C++ in blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from colbert_fast import _core
from colbert_fast.kernels.ops import InvertedLists

if TYPE_CHECKING:
    from colbert_fast.compress.codec import Codec
    from colbert_fast.search.params import SearchParams
    from colbert_fast.storage.segments import Segment

__all__ = ["Part", "Searcher"]

_BLOCK = 256  # queries in one call into C++: Ctrl-C is heard between calls


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """The arrays of a run of documents, which are read in place and may be memory maps.

    Parameters
    ----------
    codes : uint8
        From `ops.pack_codes`, in the bits that the ids of so many centroids take as `lists` has.
        One that is not below their number is read as the last.
    residuals : uint8 (n_tokens, dim * nbits // 8), or None with `embeddings`
    scales : uint8 (n_tokens,), or None where all are 1
    embeddings : float16 (n_tokens, dim), or None with `residuals`
    inverse_norms : uint8 (n_tokens,), or None with `embeddings`
    doclens : int32 (n_docs,)
    lists : InvertedLists
        Of these documents, numbered from 0, for the first centroids: centroids may have been
        appended since.
    """

    codes: NDArray[np.uint8]
    residuals: NDArray[np.uint8] | None = None
    scales: NDArray[np.uint8] | None = None
    embeddings: NDArray[np.float16] | None = None
    inverse_norms: NDArray[np.uint8] | None = None
    doclens: NDArray[np.int32]
    lists: InvertedLists

    @classmethod
    def of(cls, segment: Segment) -> Part:
        """The arrays of a segment."""
        columns: dict[str, Any] = {**segment.columns, "codes": segment.codes.packed}
        return cls(
            **columns,
            doclens=segment.doclens,
            lists=InvertedLists(segment.list_counts, segment.list_offsets, segment.list_data),
        )

    def arrays(self) -> dict[str, Any]:
        """What `_core.Searcher` calls them."""
        columns = {name: array for name, array in vars(self).items() if name != "lists"}
        return columns | self.lists._asdict()


class Searcher:
    """Search over the parts of one index, whose documents are numbered part after part.

    Parameters
    ----------
    centroids : float32 (K, dim)
    weights : float32 (2 ** nbits,) or (16,), as in `ops.decompress`; None with `embeddings`
    parts
        All compressed with the same weights, or all of embeddings.

    Raises
    ------
    ValueError, TypeError
        An array is of the wrong type or shape, or disagrees with the others; named, as
        ``parts[1].codes``.
    """

    def __init__(
        self,
        *,
        centroids: NDArray[np.float32],
        weights: NDArray[np.float32] | None,
        parts: Sequence[Part],
    ) -> None:
        self._core = _core.Searcher(
            centroids=centroids, weights=weights, parts=[part.arrays() for part in parts]
        )

    @classmethod
    def of(cls, segments: Sequence[Segment], codec: Codec) -> Searcher:
        """The searcher over segments that `codec` encoded."""
        return cls(
            centroids=codec.centroids,
            weights=getattr(codec, "weights", None),
            parts=[Part.of(segment) for segment in segments],
        )

    def search(
        self,
        queries: Sequence[NDArray[np.float32]],
        params: SearchParams,
        *,
        subset: NDArray[np.bool_] | None = None,
        candidates: Sequence[NDArray[np.int64]] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Documents by descending MaxSim over the decompressed vectors.

        Parameters
        ----------
        queries : float32 (nq, dim) each
        params
            Resolved parameters; what they mean is told there.
        subset : bool (n_docs,)
            Search only the documents that are True; where none is, there are no hits.
        candidates : int64 (m,) for each query
            Score these documents alone, of those that `subset` lets pass; nothing is probed.

        Returns
        -------
        ids : int64 (n, k), filled up with -1
        scores : float32 (n, k), filled up with -inf
        """
        ids = np.empty((len(queries), params.k), np.int64)
        scores = np.empty((len(queries), params.k), np.float32)
        for start in range(0, len(queries), _BLOCK):
            block = slice(start, start + _BLOCK)
            given = None if candidates is None else candidates[block]
            self._search_block(queries[block], params, subset, given, ids[block], scores[block])
        return ids, scores

    def _search_block(
        self,
        queries: Sequence[NDArray[np.float32]],
        params: SearchParams,
        subset: NDArray[np.bool_] | None,
        candidates: Sequence[NDArray[np.int64]] | None,
        ids: NDArray[np.int64],
        scores: NDArray[np.float32],
    ) -> None:
        starts = _starts(queries)
        threshold = params.centroid_score_threshold
        self._core.search(
            np.concatenate(queries) if len(queries) > 1 else queries[0],
            starts,
            nprobe=params.nprobe,
            ndocs=params.ndocs,
            plaid=params.mode == "plaid" and candidates is None,
            threshold=-np.inf if threshold is None else threshold,
            exhaustive=params.exhaustive,
            subset=subset,
            candidates=None
            if candidates is None
            else (np.concatenate(candidates), _starts(candidates)),
            ids=ids,
            scores=scores,
        )


def _starts(arrays: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    return np.array([*accumulate(map(len, arrays), initial=0)], np.int64)
