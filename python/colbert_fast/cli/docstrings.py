"""Passages out of the documentation that every Python installation carries, for the demonstration.

Docstrings of the standard library and of installed packages are read from their source files, of
which none is imported; ``pydoc_data`` brings the language reference, `builtins` its own.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import logging
import os
import sysconfig
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

__all__ = ["collect_passages", "docstrings", "split_text"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LEAST_WORDS = 8
_PASSAGE_WORDS = 120
_FILES_PER_PACKAGE = 60
_SKIPPED = {"test", "tests", "testing", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
_SKIPPED |= {"site-packages", "dist-packages", "pydoc_data", "vendor"}


def collect_passages(limit: int) -> Iterator[dict[str, str]]:
    """Stream up to `limit` passages, no two with the same words, as ``{"id": ..., "text": ...}``.

    Ids say where a passage comes from: ``json.dumps``, ``topic:LAMBDAS``, and ``argparse#2`` for
    the second part of a long text. The language reference and the standard library take turns;
    installed packages fill what is left.
    """
    return islice(_distinct(chain(_take_turns(_reference(), _library()), _packages())), limit)


def docstrings(source: bytes, module: str) -> Iterator[tuple[str, str]]:
    """Stream ``(qualified name, docstring)`` of the public names in a module's source.

    Raises
    ------
    SyntaxError, ValueError
        The source is not Python of this version.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the style of other people's source
        tree = ast.parse(source)
    pending: list[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]
    pending = [(module, tree)]
    while pending:
        name, node = pending.pop(0)
        docstring = ast.get_docstring(node)
        if docstring:
            yield name, docstring
        if isinstance(node, (ast.Module, ast.ClassDef)):
            pending += [
                (f"{name}.{child.name}", child)
                for child in node.body
                if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
                and not child.name.startswith("_")
            ]


def split_text(text: str, words: int = _PASSAGE_WORDS) -> list[str]:
    """Cut a text between paragraphs into passages of about `words` words."""
    passages: list[str] = []
    for paragraph in text.split("\n\n"):
        size = len(paragraph.split())
        if passages and len(passages[-1].split()) + size <= words:
            passages[-1] += f"\n\n{paragraph}"
        elif size:
            passages.append(paragraph)
    return passages


def _distinct(texts: Iterable[tuple[str, str]]) -> Iterator[dict[str, str]]:
    """Cut named texts into passages; leave out the very short and what was there before."""
    seen: set[str] = set()
    ids: set[str] = set()
    for name, text in texts:
        for part, passage in enumerate(split_text(text), 1):
            words = passage.split()
            key = " ".join(words)
            passage_id = name if part == 1 else f"{name}#{part}"
            if len(words) >= _LEAST_WORDS and key not in seen and passage_id not in ids:
                seen.add(key)
                ids.add(passage_id)
                yield {"id": passage_id, "text": f"{name}: {passage}"}


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        return {}
    return dict(topics)


def _reference() -> Iterator[tuple[str, str]]:
    """Stream the topics of ``help()`` and what the built-in types say about themselves."""
    for name, text in _topics().items():
        yield f"topic:{name}", text
    for name, value in vars(builtins).items():
        if name.startswith("_"):
            continue
        yield name, inspect.getdoc(value) or ""
        if isinstance(value, type) and not issubclass(value, BaseException):
            for method, function in vars(value).items():
                if not method.startswith("_") and callable(function):
                    yield f"{name}.{method}", inspect.getdoc(function) or ""


def _library() -> Iterator[tuple[str, str]]:
    """Stream the docstrings of the standard library, plain modules before packages' insides."""
    root = Path(sysconfig.get_path("stdlib"))
    return chain.from_iterable(_read_docstrings(file, root) for file in _source_files(root))


def _packages() -> Iterator[tuple[str, str]]:
    """Stream the docstrings of installed packages, which take turns file by file."""
    roots = dict.fromkeys(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib"))
    packages = []
    for root in roots:
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            if folder.name.isidentifier() and not folder.name.startswith("_") and folder.is_dir():
                files = islice(_source_files(folder), _FILES_PER_PACKAGE)
                packages.append(_read_docstrings(file, root) for file in files)
    return chain.from_iterable(_take_turns(*packages))


def _source_files(root: Path) -> list[Path]:
    """List the public modules under `root`, shallow ones first."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f.isidentifier() and _is_public(f)]
        found += [Path(folder, file) for file in files if file.endswith(".py") and _is_public(file)]
    return sorted(found, key=lambda file: (len(file.parts), str(file)))


def _is_public(name: str) -> bool:
    return name == "__init__.py" or not (name.startswith("_") or name in _SKIPPED)


def _read_docstrings(file: Path, root: Path) -> Iterator[tuple[str, str]]:
    parts = file.relative_to(root).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    try:
        yield from docstrings(file.read_bytes(), module)
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        # Templates and Python 2 live in installed packages too.
        logger.debug("%s: passed over (%s)", file, error)


def _take_turns(*streams: Iterable[T]) -> Iterator[T]:
    """Take one of each stream in turn until all have ended."""
    waiting = deque(iter(stream) for stream in streams)
    while waiting:
        stream = waiting.popleft()
        for item in stream:
            yield item
            waiting.append(stream)
            break
