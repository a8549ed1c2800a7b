"""Which documents each query of a batch is scored with: all, or as many of its own."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["columns_of", "documents_of"]


def columns_of(b: int, n_docs: int, documents_per_query: int | None) -> int:
    """How many documents each of `b` queries is scored with."""
    if documents_per_query is None:
        return n_docs
    if b * documents_per_query != n_docs:
        raise ValueError(
            f"`documents_per_query` times {b} queries must be the {n_docs} documents of `doclens`, "
            f"got {documents_per_query}"
        )
    return documents_per_query


def documents_of(b: int, n_docs: int, columns: int) -> Iterator[slice]:
    """The documents that each of `b` queries is scored with."""
    for query in range(b):
        first = 0 if columns == n_docs else query * columns
        yield slice(first, first + columns)
