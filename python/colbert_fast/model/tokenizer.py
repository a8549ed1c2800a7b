"""Text to padded token ids, as ColBERT lays them out, and back to words for explanations.

query:    [CLS] [Q] tokens [SEP] [MASK] [MASK] ...   up to query_length
document: [CLS] [D] tokens [SEP]                     up to document_length
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from colbert_fast.errors import CheckpointError
from colbert_fast.model.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Batch", "Tokenizer"]

logger = logging.getLogger(__name__)

# Fast tokenizers keep the last call's truncation as state, which two threads must not change at
# once. One lock for all, because a lock of its own would make a tokenizer impossible to pickle.
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Batch:
    """Token ids ready for the backbone; all arrays are (texts, longest).

    Attributes
    ----------
    input_ids : ndarray of int64
    attention_mask : ndarray of int64
        1 where the backbone attends.
    keep : ndarray of bool
        True where the row is an embedding of the text: not padding, not in the skip list.
    """

    input_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]
    keep: npt.NDArray[np.bool_]


class Tokenizer:
    """A Hugging Face tokenizer plus the layout in a ModelConfig.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    config : ModelConfig

    Raises
    ------
    CheckpointError
        If a marker is not a token of the vocabulary, or expansion is wanted and there is neither
        a mask nor an end token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> None:
        self.base = tokenizer
        self.config = config
        self._vocabulary = tokenizer.get_vocab()
        self.query_marker = self._marker("query_prefix", config.query_prefix)
        self.document_marker = self._marker("document_prefix", config.document_prefix)
        self.pad_id: int = tokenizer.pad_token_id or 0
        self.expansion_id = self._expansion_id() if config.do_query_expansion else self.pad_id
        self.skip_ids = np.array(sorted(self._skip_ids()), dtype=np.int64)
        self._told_of_cuts = False

    def tokenize_queries(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each query with special tokens and marker, without expansion."""
        config = self.config
        return self._tokenize(texts, config.query_prompt, config.query_length, self.query_marker)

    def tokenize_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each document with special tokens and marker, without padding.

        The first time that some fill `document_length` a warning says how many.
        """
        config, length = self.config, self.config.document_length
        rows = self._tokenize(texts, config.document_prompt, length, self.document_marker)
        full = sum(len(row) == length for row in rows)
        if full and not self._told_of_cuts:
            self._told_of_cuts = True
            logger.warning(
                "%d of %d texts fill the %d tokens of document_length, where longer ones are cut; "
                "ColBERT.from_pretrained(document_length=), --document-length of the commands, "
                "sets another (said once)",
                full,
                len(rows),
                length,
            )
        return rows

    def batch_queries(self, ids: Sequence[Sequence[int]]) -> Batch:
        """Expand to query_length with every row kept; without expansion, pad to the longest."""
        if not self.config.do_query_expansion:
            input_ids, real = _pad(ids, _longest(ids), self.pad_id)
            return Batch(input_ids, real.astype(np.int64), real)
        input_ids, real = _pad(ids, self.config.query_length, self.expansion_id)
        attention = real.astype(np.int64)
        if self.config.attend_to_expansion_tokens:
            attention[:] = 1
        return Batch(input_ids, attention, np.ones_like(real))

    def batch_documents(self, ids: Sequence[Sequence[int]]) -> Batch:
        """Pad to the longest; rows of padding and of the skip list are not kept."""
        input_ids, real = _pad(ids, _longest(ids), self.pad_id)
        return Batch(input_ids, real.astype(np.int64), real & ~self.skips(input_ids))

    def skips(self, input_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """True where a token id is in the skip list."""
        return np.isin(input_ids, self.skip_ids)

    def query_tokens(self, text: str) -> list[str]:
        """The token behind each row of the query's embedding, as vocabulary strings."""
        batch = self.batch_queries(self.tokenize_queries([text]))
        kept = batch.input_ids[0][batch.keep[0]].tolist()
        return [str(token) for token in self.base.convert_ids_to_tokens(kept)]

    def document_spans(self, text: str) -> list[tuple[int, int] | None]:
        """Character span of each kept document row in `text`; None for special tokens and markers.

        Raises
        ------
        ValueError
            If the tokenizer is a slow (pure Python) one, which has no offsets.
        """
        if not self.base.is_fast:
            raise ValueError(
                f"{type(self.base).__name__} has no character offsets; explanations need a fast "
                "tokenizer (a checkpoint with tokenizer.json)"
            )
        prompt = self.config.document_prompt
        room = self.config.document_length - (self.document_marker is not None)
        encoded = self._call([prompt + text], room, offsets=True)
        ids: list[int] = encoded["input_ids"][0]
        special: list[int] = encoded["special_tokens_mask"][0]
        spans = [
            None if mark or end <= len(prompt) else (max(start - len(prompt), 0), end - len(prompt))
            for (start, end), mark in zip(encoded["offset_mapping"][0], special, strict=True)
        ]
        if self.document_marker is not None:
            ids.insert(1, self.document_marker)
            spans.insert(1, None)
        skipped = self.skips(np.array(ids, dtype=np.int64))
        return [span for span, skip in zip(spans, skipped, strict=True) if not skip]

    def _tokenize(
        self, texts: Sequence[str], prompt: str, length: int, marker: int | None
    ) -> list[list[int]]:
        prompted = [prompt + text for text in texts] if prompt else list(texts)
        rows: list[list[int]] = self._call(prompted, length - (marker is not None))["input_ids"]
        if marker is not None:
            for row in rows:
                row.insert(1, marker)
        return rows

    def _call(self, texts: list[str], length: int, *, offsets: bool = False) -> Any:
        # Explicit truncation and padding override whatever is baked into tokenizer.json.
        with _LOCK:
            return self.base(
                texts,
                add_special_tokens=True,
                truncation=True,
                max_length=length,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                return_offsets_mapping=offsets,
                return_special_tokens_mask=offsets,
                verbose=False,
            )

    def _token_id(self, token: str) -> int | None:
        """Id of a vocabulary token, or None: an unknown one must not become [UNK]."""
        index: int | None = self._vocabulary.get(token)
        return index

    def _marker(self, key: str, token: str) -> int | None:
        if not token:
            return None
        index = self._token_id(token)
        if index is None:
            raise CheckpointError(
                f"{key}: marker {token!r} is not in the tokenizer's vocabulary; "
                f"pass {key}='' for no marker, or a token that is"
            )
        return index

    def _expansion_id(self) -> int:
        for index in (self.base.mask_token_id, self.base.eos_token_id, self.base.pad_token_id):
            if index is not None:
                return int(index)
        raise CheckpointError(
            "mask_token: the tokenizer has no mask, end or padding token to expand queries with; "
            "pass do_query_expansion=False"
        )

    def _skip_ids(self) -> set[int]:
        found = (self._token_id(word) for word in self.config.skiplist_words)
        return {index for index in found if index is not None}


def _longest(ids: Sequence[Sequence[int]]) -> int:
    # A tokenizer without special tokens makes nothing of an empty text; the backbone needs a row.
    return max(1, *map(len, ids))


def _pad(
    ids: Sequence[Sequence[int]], length: int, fill: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """(texts, length) ids filled behind each text, and where they are real."""
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    real = np.arange(length) < lengths[:, None]
    padded = np.full(real.shape, fill, dtype=np.int64)
    padded[real] = np.concatenate([np.asarray(row, dtype=np.int64) for row in ids])
    return padded, real
