"""BM25 over the stored texts."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from colbert_fast.storage.text_index import TextIndex, count_terms

__all__ = ["BM25", "best", "length_norm", "word_weight"]

_K1, _B = 1.2, 0.75


class BM25:
    """Rank the documents of several stores, one after the other, by BM25 (Robertson et al. 1994).

    A word's weight is ln(1 + (N - n + 0.5) / (n + 0.5)), as in Lucene: n of the N documents with a
    text hold it, deleted ones included, over all stores. k1 = 1.2, b = 0.75.
    """

    def __init__(self, stores: Sequence[TextIndex]) -> None:
        self._stores = stores

    @functools.cached_property
    def num_texts(self) -> int:
        """Documents with at least one word."""
        return sum(int(np.count_nonzero(store.lengths)) for store in self._stores)

    @functools.cached_property
    def _norms(self) -> list[npt.NDArray[np.float32]]:
        """What is added to a count below the line: float32 (num_documents,) for each store."""
        words = sum(int(store.lengths.sum(dtype=np.int64)) for store in self._stores)
        mean = words / max(self.num_texts, 1) or 1.0
        return [length_norm(store.lengths, mean) for store in self._stores]

    def score(self, query: str) -> npt.NDArray[np.float32]:
        """The scores of all documents, float32 (n_rows,); 0 where no word of `query` occurs."""
        [terms] = count_terms([query])
        found = [store.postings(terms) for store in self._stores]
        scores = [np.zeros(store.num_documents, np.float32) for store in self._stores]
        for term in sorted(terms):
            n = sum(len(each[term].positions) for each in found if term in each)
            weight = terms[term] * word_weight(self.num_texts, n)
            for each, out, norms in zip(found, scores, self._norms, strict=True):
                if term in each:
                    positions, counts = each[term]
                    out[positions] += np.float32(weight) * counts / (counts + norms[positions])
        return np.concatenate(scores)


def word_weight(num_texts: int, holders: int) -> float:
    """The weight of a word that `holders` of `num_texts` texts hold."""
    return math.log1p((num_texts - holders + 0.5) / (holders + 0.5))


def length_norm(lengths: npt.NDArray[np.integer[Any]], mean: float) -> npt.NDArray[np.float32]:
    """What is added to a count below the line, float32 (n,), for texts of `lengths` words."""
    return (_K1 * (1 - _B + _B / mean * lengths)).astype(np.float32)


def best(
    scores: npt.NDArray[np.float32], k: int, mask: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.int64]:
    """The positions of the `k` highest scores above 0, best first, ties by position.

    `mask`, bool (n_rows,), says which may be among them.
    """
    found = np.flatnonzero(scores if mask is None else np.where(mask, scores, 0))
    if len(found) > k:
        least = np.partition(scores[found], len(found) - k)[len(found) - k]
        found = found[scores[found] >= least]
    return found[np.lexsort((found, -scores[found]))][:k]
