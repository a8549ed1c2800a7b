"""A first search over text that everybody has: the documentation inside a Python installation."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import sysconfig
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from colbert_fast.caches import cache_folder
from colbert_fast.cli.docstrings import collect_passages
from colbert_fast.index import Index

if TYPE_CHECKING:
    from colbert_fast.cli.terminal import Terminal
    from colbert_fast.model import ColBERT

__all__ = ["run_demo"]

logger = logging.getLogger(__name__)

QUESTIONS = (
    "how do I parse command line arguments?",
    "read one file out of a zip archive",
    "what does the with statement do?",
    "run a function in several processes at once",
    "why is my default argument list shared between calls?",
)


def run_demo(
    model: ColBERT,
    *,
    terminal: Terminal,
    path: Path | None = None,
    passages: int = 6000,
    nbits: int = 2,
    k: int = 3,
    rebuild: bool = False,
    progress: bool = True,
    ask: Callable[[str], str] | None = None,
) -> None:
    """Build or reuse the demonstration index, then answer some questions and the user's own.

    Parameters
    ----------
    model : ColBERT
        Encodes the passages and the questions.
    terminal : Terminal
        Where the answers are written.
    path : Path, optional
        Folder for the index; by default one in the user's cache.
    passages : int
        Index at most so many.
    nbits, k : int
        Bits per residual dimension; answers per question.
    rebuild : bool
        Build even where the index of an earlier run would serve.
    progress : bool
        Show progress bars.
    ask : callable, optional
        Prompts for a question; by default `input` if standard input is a terminal, else nothing
        is asked. An empty answer or EOFError ends the demonstration.
    """
    folder = cache_folder("demo") if path is None else path
    with _open_or_build(
        model,
        folder,
        passages=passages,
        nbits=nbits,
        rebuild=rebuild,
        progress=progress,
        terminal=terminal,
    ) as index:
        _describe(index, terminal)
        times = [_answer(index, question, k, terminal) for question in QUESTIONS]
        encoding, searching = (
            1000 * sorted(column)[len(times) // 2] for column in zip(*times, strict=True)
        )
        terminal.say()
        terminal.say(
            f"{encoding + searching:.1f} ms/query: {encoding:.1f} to encode the question, "
            f"{searching:.1f} to search (median of {len(times)})"
        )
        if ask is None and sys.stdin.isatty():
            ask = input
        for question in iter(partial(_next_question, ask), ""):
            _answer(index, question, k, terminal)


def _next_question(ask: Callable[[str], str] | None) -> str:
    """Prompt for a question; an empty one is the end."""
    try:
        return "" if ask is None else ask("\nyour question (empty to quit)> ").strip()
    except EOFError:
        return ""


def _fingerprint(model: ColBERT, passages: int, nbits: int) -> str:
    """Name everything that the demonstration index depends on: another name, another index."""
    roots = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    installed = sorted(file.name for root in roots for file in Path(root).glob("*.dist-info"))
    facts = [sys.version, model.name, model.fingerprint(), passages, nbits, installed]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _open_or_build(
    model: ColBERT,
    folder: Path,
    *,
    passages: int,
    nbits: int,
    rebuild: bool,
    progress: bool,
    terminal: Terminal,
) -> Index:
    path, stamp = folder / "index.cf", folder / "demo.json"
    fingerprint = _fingerprint(model, passages, nbits)
    index = None if rebuild else _reuse(path, stamp, fingerprint, model)
    if index is not None:
        terminal.say(f"using the index of an earlier run: {path}")
        return index
    terminal.say(f"building an index of the documentation in this Python installation: {path}")
    folder.mkdir(parents=True, exist_ok=True)
    # Only what a demonstration made is replaced by one, were it broken off half way.
    overwrite = stamp.exists() or rebuild
    if overwrite or not path.exists():
        stamp.write_text("{}", encoding="utf-8")
    bar = tqdm(
        collect_passages(passages),
        desc="reading docstrings",
        total=passages,
        unit=" passages",
        disable=not progress,
    )
    documents = list(bar)
    start = time.perf_counter()
    index = Index.build(
        path, documents, model=model, nbits=nbits, overwrite=overwrite, progress=progress
    )
    rate = len(index) / (time.perf_counter() - start)
    stamp.write_text(json.dumps({"fingerprint": fingerprint}), encoding="utf-8")
    terminal.say(f"encoded and indexed at {rate:.0f} passages/s")
    return index


def _reuse(path: Path, stamp: Path, fingerprint: str, model: ColBERT) -> Index | None:
    """Open the index of an earlier run if it is whole and what would be built now."""
    try:
        contents = json.loads(stamp.read_text(encoding="utf-8"))
        if contents.get("fingerprint") != fingerprint:
            return None
        return Index.open(path, model=model)
    except (FileNotFoundError, ValueError) as error:
        logger.info("%s: not used again (%s)", path, error)
        return None


def _describe(index: Index, terminal: Terminal) -> None:
    """Say how large the index is, and how much smaller than its embeddings."""
    facts = index.info()
    vectors = facts["vector_bytes_per_token"]
    texts = (facts["bytes_per_token"] - vectors) * facts["tokens"]
    terminal.say(
        f"{facts['documents']} passages, {facts['tokens']} tokens of {facts['dim']} dimensions: "
        f"{vectors:.1f} bytes/token, {facts['compression_vs_float16']:.1f} times smaller than "
        f"float16 vectors (and {texts / 1e6:.1f} MB of texts)"
    )


def _answer(index: Index, question: str, k: int, terminal: Terminal) -> tuple[float, float]:
    """Print the answers to one question; return the seconds to encode it and to search."""
    start = time.perf_counter()
    vectors = index.model.encode_queries([question])
    encoded = time.perf_counter()
    index.search(vectors, k=k)
    found = time.perf_counter()
    terminal.say()
    terminal.title(question)
    # Once more with the text: without it, hits could not say which words matched.
    terminal.hits(index.search(question, k=k))
    return encoded - start, found - encoded
