"""What a ColBERT checkpoint fixes besides its weights: lengths, markers, expansion, skip list."""

from __future__ import annotations

import string
from dataclasses import dataclass, fields

__all__ = ["PUNCTUATION", "ModelConfig"]

PUNCTUATION: tuple[str, ...] = tuple(string.punctuation)

MAX_LENGTH = 65536


@dataclass(frozen=True)
class ModelConfig:
    """The input layout and output size of a ColBERT model.

    Attributes
    ----------
    dim : int
        Columns of every embedding, a multiple of 8 so that residual codes fill whole bytes.
    query_length, document_length : int
        Most tokens of an input, special tokens and marker included. With expansion a query has
        exactly `query_length` rows.
    query_prefix, document_prefix : str
        Marker: one vocabulary token inserted at position 1, behind the first special token.
        "" inserts none.
    query_prompt, document_prompt : str
        Text put in front of every input before tokenisation. "" puts none.
    do_query_expansion : bool
        Fill queries up to `query_length` with mask tokens, each of which gives a scored row
        (query augmentation, ColBERT, arXiv 2004.12832, section 3.2).
    attend_to_expansion_tokens : bool
        Whether the other tokens see the mask tokens in attention.
    skiplist_words : tuple of str
        Vocabulary tokens whose rows are dropped from documents. Words that are not a single
        vocabulary token are ignored.
    """

    dim: int
    query_length: int = 32
    document_length: int = 180
    query_prefix: str = ""
    document_prefix: str = ""
    query_prompt: str = ""
    document_prompt: str = ""
    do_query_expansion: bool = True
    attend_to_expansion_tokens: bool = False
    skiplist_words: tuple[str, ...] = PUNCTUATION

    def __post_init__(self) -> None:
        """Raise TypeError or ValueError naming the field that cannot be."""
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), str(field.type))
        if self.dim < 8 or self.dim % 8:
            raise ValueError(f"dim: want a positive multiple of 8, got {self.dim}")
        for name in ("query_length", "document_length"):
            value = getattr(self, name)
            # [CLS], a marker and [SEP] must fit beside one token of text.
            if not 4 <= value <= MAX_LENGTH:
                raise ValueError(f"{name}: want 4 to {MAX_LENGTH} tokens, got {value}")


def _check_type(name: str, value: object, kind: str) -> None:
    if kind == "tuple[str, ...]":
        if not isinstance(value, tuple) or not all(isinstance(word, str) for word in value):
            raise TypeError(f"{name}: want a tuple of str, got {value!r}")
        return
    # bool is an int in Python, but a length of True is a mistake.
    wanted = {"int": int, "str": str, "bool": bool}[kind]
    if type(value) is not wanted:
        raise TypeError(f"{name}: want {kind}, got {type(value).__name__} {value!r}")
