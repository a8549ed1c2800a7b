"""Why a document was found: which query token met which of its tokens, and where in the text.

MaxSim (ColBERT, section 3.3) adds, for every query token, the similarity of the closest document
token, so a score takes itself apart without any attribution method.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from colbert_fast.kernels import ops

if TYPE_CHECKING:
    from colbert_fast.model import ColBERT

__all__ = ["Match", "explain", "highlight", "matched_words"]

_CONTROL = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
_WORD = re.compile(r"\w")
_SPECIAL = re.compile(r"\[.*\]|<.*>")


class Match(NamedTuple):
    """One query token and the document token that is closest to it."""

    query_token: str
    token: str
    """The document token as it stands in the text; empty for [CLS], [SEP] and the [D] marker."""
    span: tuple[int, int] | None
    """Characters ``text[start:end]`` of the document token; None for a marker."""
    score: float
    """Their dot product: what this query token adds to the document's score."""


def explain(model: ColBERT, query: str, text: str) -> list[Match]:
    """Take the MaxSim score of a text apart, query token by query token.

    The text is encoded anew, neither compressed nor pooled, so the scores add up to the exact
    MaxSim of the two, which the score of a hit approximates.

    Parameters
    ----------
    model : ColBERT
        The model that the index was built with.
    query, text : str
        What was asked and what was found.

    Returns
    -------
    list of Match
        One for each query token in their order, [MASK] expansion tokens included.
    """
    query_rows = np.ascontiguousarray(model.encode_queries([query])[0], dtype=np.float32)
    rows = np.ascontiguousarray(model.encode_documents([text], progress=False)[0], np.float32)
    if len(rows) == 0:
        return []
    doclens = np.array([len(rows)], dtype=np.int32)
    _, argmax = ops.maxsim(query_rows, rows, doclens, return_argmax=True)
    closest = argmax[0]
    scores = np.einsum("qd,qd->q", query_rows, rows[closest])
    spans = model.document_spans(text)
    matches = []
    for name, row, score in zip(model.query_tokens(query), closest, scores, strict=True):
        span = spans[row]
        matches.append(Match(name, text[slice(*span)] if span else "", span, float(score)))
    return matches


def matched_words(
    text: str, matches: Sequence[Match], *, min_score: float = 0.5
) -> list[tuple[int, int]]:
    """Find the words that the query's own words met: disjoint spans of `text`, in its order.

    Markers and [MASK] tokens of the query count for nothing here, nor do matches below `min_score`
    (a cosine) or on punctuation. A piece of a word stands for the whole word.
    """
    spans = set()
    for match in matches:
        told = _WORD.search(match.query_token) and not _SPECIAL.fullmatch(match.query_token)
        if match.span is None or match.score < min_score or not told:
            continue
        start, end = match.span
        if _WORD.search(text[start:end]):
            spans.add(_whole_word(text, start, end))
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def highlight(
    text: str,
    matches: Sequence[Match],
    *,
    width: int | None = None,
    min_score: float = 0.5,
    marks: tuple[str, str] = ("\x1b[1;33m", "\x1b[0m"),
) -> str:
    """Mark the matched words of a text for a terminal.

    Parameters
    ----------
    text : str
        The text that `matches` speak of. Its control characters are shown as U+FFFD, so that no
        document can send the terminal commands.
    matches : sequence of Match
        What `explain` found.
    width : int, optional
        Cut out the stretch of about so many characters that holds the most matched words.
    min_score : float
        The cosine from which a match counts.
    marks : (str, str)
        What to put before and after a matched word; ``("", "")`` only cuts.
    """
    words = matched_words(text, matches, min_score=min_score)
    first, last = (0, len(text)) if width is None else _best_window(text, words, width)
    clean = text.translate(_CONTROL)
    pieces, at = ["…"] if first > 0 else [], first
    for start, end in words:
        if start >= first and end <= last:
            pieces += [clean[at:start], marks[0], clean[start:end], marks[1]]
            at = end
    pieces += [clean[at:last], "…" if last < len(text) else ""]
    return "".join(pieces)


def _whole_word(text: str, start: int, end: int) -> tuple[int, int]:
    """Widen a span to the letters and digits around it."""
    while start > 0 and text[start - 1].isalnum() and text[start].isalnum():
        start -= 1
    while end < len(text) and text[end].isalnum() and text[end - 1].isalnum():
        end += 1
    return start, end


def _best_window(text: str, words: Sequence[tuple[int, int]], width: int) -> tuple[int, int]:
    """Return the stretch of `width` characters with the most words in it, cut between words."""
    if len(text) <= width:
        return 0, len(text)
    starts = [0, *(start for start, _ in words)]
    held = [sum(s <= start and end <= s + width for start, end in words) for s in starts]
    best = starts[held.index(max(held))]
    # A little of what stands before the first word, and never a stretch shorter than asked for.
    first = max(0, min(best - width // 8, len(text) - width))
    last = first + width
    if first > 0:
        first = text.find(" ", first, first + 20) + 1 or first
    if last < len(text):
        last = text.rfind(" ", last - 20, last) if " " in text[last - 20 : last] else last
    return first, last
