"""BM25 over the stored texts."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from colbert_fast.storage.text_index import TextIndex, count_terms

__all__ = ["BM25"]

_K1, _B = 1.2, 0.75


class BM25:
    """Rank the documents of several stores, one after the other, by BM25 (Robertson et al. 1994).

    A word's weight is ln(1 + (N - n + 0.5) / (n + 0.5)), as in Lucene: n of the N documents with a
    text hold it, deleted ones included, over all stores. k1 = 1.2, b = 0.75.
    """

    def __init__(self, stores: Sequence[TextIndex]) -> None:
        self._stores = stores

    @functools.cached_property
    def _num_texts(self) -> int:
        return sum(int(np.count_nonzero(store.lengths)) for store in self._stores)

    @functools.cached_property
    def _norms(self) -> list[npt.NDArray[np.float32]]:
        """What is added to a count below the line: float32 (num_documents,) for each store."""
        words = sum(int(store.lengths.sum(dtype=np.int64)) for store in self._stores)
        mean = words / max(self._num_texts, 1) or 1.0
        return [
            (_K1 * (1 - _B + _B / mean * store.lengths)).astype(np.float32)
            for store in self._stores
        ]

    def score(self, terms: Mapping[str, int]) -> npt.NDArray[np.float32]:
        """The scores (n,) of all documents for a query's words; 0 where none occurs."""
        found = [store.postings(terms) for store in self._stores]
        scores = [np.zeros(store.num_documents, np.float32) for store in self._stores]
        for term in sorted(terms):
            n = sum(len(each[term].positions) for each in found if term in each)
            weight = terms[term] * np.log1p((self._num_texts - n + 0.5) / (n + 0.5))
            for each, out, norms in zip(found, scores, self._norms, strict=True):
                if term in each:
                    positions, counts = each[term]
                    out[positions] += np.float32(weight) * counts / (counts + norms[positions])
        return np.concatenate(scores)

    def search(
        self, queries: Sequence[str], k: int, mask: npt.NDArray[np.bool_] | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The `k` best documents of each query that hold any of its words, best first.

        Parameters
        ----------
        queries
            Texts.
        k
            Documents wanted.
        mask : bool (n_docs,)
            Those that may be found; all by default.

        Returns
        -------
        int64 positions and float32 scores, both (queries, k), filled up with -1 and -inf.
        """
        pids = np.full((len(queries), k), -1, np.int64)
        best = np.full((len(queries), k), -np.inf, np.float32)
        for row, terms in enumerate(count_terms(queries)):
            scores = self.score(terms)
            if mask is not None:
                scores[~mask] = 0
            found = np.flatnonzero(scores)
            if len(found) > k:
                least = -np.partition(-scores[found], k - 1)[k - 1]
                found = found[scores[found] >= least]
            order = found[np.lexsort((found, -scores[found]))][:k]
            pids[row, : len(order)] = order
            best[row, : len(order)] = scores[order]
        return pids, best
