"""What the command line writes: plain lines, and search results with matching words marked."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from colbert_fast.search.explain import highlight

if TYPE_CHECKING:
    from colbert_fast.search.results import Hit

__all__ = ["Terminal", "counted", "printable"]

_MARKS = ("\ue000", "\ue001")  # one column each while lines are broken, unlike what they stand for
_SEQUENCES = ("\x1b[1;33m", "\x1b[0m")
_NO_MARKS = {ord(mark): "\ufffd" for mark in _MARKS}
_CONTROL = dict.fromkeys((*range(32), *range(127, 160)), "\ufffd")


def printable(text: str) -> str:
    """Show every control character, line ends included, as U+FFFD: no id commands a terminal."""
    return text.translate(_CONTROL)


def counted(number: int, noun: str) -> str:
    """A number of things, of which one is a `noun`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class Terminal:
    """A place to write lines to.

    Parameters
    ----------
    out : file, optional
        Standard output by default.
    color : bool, optional
        Whether to use ANSI sequences; by default if `out` is a terminal and the environment has
        no ``NO_COLOR`` (https://no-color.org).
    """

    def __init__(self, out: TextIO | None = None, *, color: bool | None = None) -> None:
        self.out = sys.stdout if out is None else out
        wanted = self.out.isatty() and not os.environ.get("NO_COLOR")
        self.color = wanted if color is None else color
        self.width = min(shutil.get_terminal_size((100, 24)).columns, 120)

    def say(self, text: str = "") -> None:
        """Write one line."""
        self.out.write(f"{text}\n")
        self.out.flush()

    def title(self, text: str) -> None:
        """Write one line that stands out, its control characters as U+FFFD."""
        text = printable(text)
        self.say(f"\x1b[1m{text}\x1b[0m" if self.color else text)

    def hits(self, hits: Sequence[Hit], *, lines: int = 3) -> None:
        """Write search results: rank, score and id, then some lines of each text.

        On a terminal with colors the lines are those that answer the query best, with the matched
        words marked, which costs one encoding of each text; elsewhere the text's beginning.
        """
        if not hits:
            self.say("  nothing found")
        for rank, hit in enumerate(hits, 1):
            self.title(f"{rank:3}. {hit.id}  ({hit.score:.2f})")
            if hit.text:
                self.say(self._excerpt(hit, lines))

    def _excerpt(self, hit: Hit, lines: int) -> str:
        matches = hit.explain() if self.color else []
        # As long as it was, so that the matches still fit, and without marks of its own.
        text = (hit.text or "").translate(_NO_MARKS)
        marked = highlight(text, matches, width=lines * (self.width - 8), marks=_MARKS)
        # White space is shrunk only now: the matches speak of places in the text as it was.
        rows = textwrap.wrap(
            " ".join(marked.split()),
            self.width - 5,
            max_lines=lines + 1,
            placeholder=" …",
            break_long_words=False,
            break_on_hyphens=False,
        )
        excerpt = textwrap.indent("\n".join(rows), "     ")
        for mark, sequence in zip(_MARKS, _SEQUENCES, strict=True):
            excerpt = excerpt.replace(mark, sequence)
        return excerpt
