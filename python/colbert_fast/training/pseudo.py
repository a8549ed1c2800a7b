"""Queries made of the passages themselves, where nobody has written any.

Three kinds, each of which asks for the passage that it came from: `keywords`, a few of the words
that tell the passage from the others, as people type them; `crop`, a few consecutive words of one
sentence; `cloze`, the same of a sentence that is then cut out of the passage, so that matching
words is not enough (the inverse cloze task, arXiv 1906.00300).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["FUNCTION_WORDS", "PseudoQueries", "is_prose", "pseudo_queries"]

_FUNCTION_WORDS = """
a about also an and any are as at be been but by can do does for from had has have he her how i
if in into is it its may more no not of on one only or other she so such than that the then
there these they this to was we were what when where which who why will with would you
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())

KINDS = ("keywords", "crop", "cloze")

_WORD = re.compile(r"[^\W\d_](?:[^\W\d_]|['-])+")
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+")
# A sentence of fewer words says little, one of more is a table or a listing without full stops.
_SENTENCE_WORDS = range(5, 31)
_KEYWORDS, _STRONGEST = (2, 5), 6
_CROP_WORDS = (6, 16)


@dataclass(frozen=True)
class PseudoQueries:
    """What `pseudo_queries` has made.

    Attributes
    ----------
    queries : dict of str to str
        Query id to text.
    positives : dict of str to {str: int}
        Query id to its passage, with grade 1.
    documents : dict of str to str
        All passages, the cloze sentences cut out.
    """

    queries: dict[str, str]
    positives: dict[str, dict[str, int]]
    documents: dict[str, str]


def is_prose(text: str, *, function_words: float = 0.3, words: float = 0.8) -> bool:
    """Whether a text reads like English sentences rather than like listings, tables or code.

    Parameters
    ----------
    text : str
    function_words : float
        The least share of its white-space separated words that are in FUNCTION_WORDS.
    words : float
        The share of them that must be exceeded by those of letters alone, a closing punctuation
        mark aside.
    """
    parts = text.lower().split()
    if not parts or not text.isascii():
        return False
    common = sum(part in FUNCTION_WORDS for part in parts)
    plain = sum(re.fullmatch(r"[a-z][a-z'-]*[.,;:]?", part) is not None for part in parts)
    return common >= function_words * len(parts) and plain > words * len(parts)


def pseudo_queries(
    documents: Mapping[str, str],
    *,
    kinds: Sequence[str] = KINDS,
    cloze_share: float = 0.6,
    seed: int = 0,
) -> PseudoQueries:
    """Make at most one query of each kind from every passage.

    Parameters
    ----------
    documents : mapping of str to str
        Document id to text; passages of some 100 words.
    kinds : sequence of {"keywords", "crop", "cloze"}
    cloze_share : float
        The share of the passages of three sentences or more that lose one to a cloze query.
    seed : int
        The same documents, kinds and seed give the same queries.

    Returns
    -------
    PseudoQueries
        Query ids are KIND-DOCUMENT. A passage without a fit sentence or two keywords has fewer.

    Raises
    ------
    ValueError
        If a kind is unknown or `cloze_share` is not from 0 to 1.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown:
        raise ValueError(f"kinds: want some of {KINDS}, got {sorted(unknown)}")
    if not 0 <= cloze_share <= 1:
        raise ValueError(f"cloze_share: want a share from 0 to 1, got {cloze_share!r}")
    frequencies = Counter(word for text in documents.values() for word in set(_content(text)))
    rng = np.random.default_rng(seed)
    made = PseudoQueries({}, {}, {})
    for name, text in documents.items():
        found: dict[str, str] = {}
        if "cloze" in kinds and rng.random() < cloze_share:
            found["cloze"], text = _cloze(text, rng)
        if "keywords" in kinds:
            found["keywords"] = _keywords(text, frequencies, len(documents), rng)
        if "crop" in kinds:
            found["crop"] = _crop(_sentences(text), rng)
        made.documents[name] = text
        for kind in kinds:
            if found.get(kind):
                made.queries[f"{kind}-{name}"] = found[kind]
                made.positives[f"{kind}-{name}"] = {name: 1}
    return made


def _content(text: str) -> list[str]:
    words = (word.lower() for word in _WORD.findall(text))
    return [word for word in words if word not in FUNCTION_WORDS]


def _sentences(text: str) -> list[str]:
    parts = _SENTENCE_END.split(text)
    return [part.strip() for part in parts if len(part.split()) in _SENTENCE_WORDS]


def _keywords(text: str, frequencies: Counter[str], count: int, rng: np.random.Generator) -> str:
    """A few of the words of highest tf-idf, in the order in which the text has them."""
    counts = Counter(_content(text))
    weight = {word: n * math.log(count / frequencies[word] + 1) for word, n in counts.items()}
    strongest = sorted(weight, key=lambda word: -weight[word])[:_STRONGEST]
    least, most = _KEYWORDS
    if len(strongest) < least:
        return ""
    size = int(rng.integers(least, min(most, len(strongest)) + 1))
    chosen = {strongest[i] for i in rng.permutation(len(strongest))[:size]}
    return " ".join(word for word in counts if word in chosen)


def _crop(sentences: Sequence[str], rng: np.random.Generator) -> str:
    if not sentences:
        return ""
    words = sentences[int(rng.integers(len(sentences)))].split()
    size = min(len(words), int(rng.integers(_CROP_WORDS[0], _CROP_WORDS[1] + 1)))
    start = int(rng.integers(len(words) - size + 1))
    return " ".join(words[start : start + size])


def _cloze(text: str, rng: np.random.Generator) -> tuple[str, str]:
    """A crop of one sentence and the text without it; "" and the text if that is short."""
    sentences = _sentences(text)
    if len(sentences) < 3:
        return "", text
    chosen = sentences[int(rng.integers(len(sentences)))]
    return _crop([chosen], rng), " ".join(text.replace(chosen, " ").split())
