"""A model without weights: every word is a fixed random vector, so search finds equal words."""

# ruff: noqa: ARG002

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

_WORD = re.compile(r"\w+|[^\w\s]")


class WordModel:
    """Has the methods of ``ColBERT`` that indexing, searching and explaining call.

    Documents get one marker row before their words; queries one [MASK] row after theirs. Options
    of the real methods are taken and left alone.
    """

    name = "words"
    dim = 32

    def fingerprint(self) -> str:
        return "words"

    def encode_queries(
        self,
        texts: str | Sequence[str],
        *,
        batch_size: int = 32,
        progress: bool = False,
    ) -> list[np.ndarray]:
        texts = [texts] if isinstance(texts, str) else texts
        return [self._rows([*_WORD.findall(text.lower()), "[MASK]"]) for text in texts]

    def encode_documents(
        self,
        texts: Iterable[str],
        *,
        batch_size: int = 32,
        pool_factor: int = 1,
        progress: bool = False,
    ) -> Iterator[np.ndarray] | list[np.ndarray]:
        rows = (self._rows(["[D]", *_WORD.findall(text.lower())]) for text in texts)
        return list(rows) if isinstance(texts, list) else rows

    def document_spans(self, text: str) -> list[tuple[int, int] | None]:
        return [None, *(match.span() for match in _WORD.finditer(text))]

    def query_tokens(self, text: str) -> list[str]:
        return [*_WORD.findall(text.lower()), "[MASK]"]

    def _rows(self, words: list[str]) -> np.ndarray:
        rows = [np.random.default_rng(zlib.crc32(w.encode())).normal(size=32) for w in words]
        return np.array([row / np.linalg.norm(row) for row in rows], np.float32)
