"""Questions made from passages where there are none: titles, and sentences cropped from texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

__all__ = ["pseudo_queries"]

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n{2,}")
_FEWEST, _MOST = 4, 24  # words of a question


def pseudo_queries(
    documents: Iterable[Mapping[str, Any]], *, seed: int = 0
) -> Iterator[tuple[str, str, str]]:
    """Stream a question for each passage that gives one.

    A passage that starts with a title and a line break is asked for by it; any other by one of its
    sentences, cropped to 4 to 24 words (arXiv 2112.09118, section 3). What has fewer gives none.

    Parameters
    ----------
    documents : iterable of mapping
        With "id" and "text", as `corpus.read_corpus` gives them.
    seed : int
        Of the choices, which depend on the place of a passage as well.

    Yields
    ------
    tuple of str
        Id of the question ("pseudo-" and the passage's), its text, id of the passage.
    """
    for place, document in enumerate(documents):
        rng = np.random.default_rng((seed, place))
        text = _question(str(document["text"]), rng)
        if text is not None:
            name = str(document["id"])
            yield f"pseudo-{name}", text, name


def _question(text: str, rng: np.random.Generator) -> str | None:
    title, _, rest = text.partition("\n")
    if rest and _FEWEST <= len(title.split()) <= _MOST:
        return title.strip()
    sentences = [words for part in _SENTENCE.split(text) if len(words := part.split()) >= _FEWEST]
    if not sentences:
        return None
    words = sentences[int(rng.integers(len(sentences)))]
    size = int(rng.integers(_FEWEST, min(_MOST, len(words)) + 1))
    start = int(rng.integers(len(words) - size + 1))
    return " ".join(words[start : start + size])
