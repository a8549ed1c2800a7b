"""The documents of an index: the stores of all its segments, less what is deleted."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from colbert_fast.errors import IndexFormatError, UnknownDocumentError
from colbert_fast.storage.documents import Document, DocumentId, DocumentStore, check_id

__all__ = ["Library", "Reader"]

_MAX_NAMED = 5


class Reader(Protocol):
    """Somebody who has not read yet what they will want from a library."""

    def read(self) -> object: ...


class Library:
    """Ids, texts and metadata by position, which counts through the segments.

    Parameters
    ----------
    stores
        One for each segment.
    sizes
        How many documents each one has.
    live : bool (n_rows,)
        False where a document is deleted; None if none is.
    """

    def __init__(
        self,
        stores: Sequence[DocumentStore],
        sizes: Sequence[int],
        live: npt.NDArray[np.bool_] | None,
    ) -> None:
        self.stores = stores
        self.live = live
        self._bases = [0, *np.cumsum(sizes).tolist()]
        self._readers: weakref.WeakSet[Reader] = weakref.WeakSet()

    def fetch(self, positions: Iterable[int]) -> dict[int, Document]:
        """Position to document, for the positions given.

        Raises
        ------
        IndexFormatError
            A document is missing or damaged.
        """
        wanted = np.unique(np.fromiter(positions, np.int64))
        cuts = np.searchsorted(wanted, self._bases)
        found: dict[int, Document] = {}
        for store, base, start, end in zip(
            self.stores, self._bases, cuts[:-1], cuts[1:], strict=False
        ):
            for local, document in store.fetch((wanted[start:end] - base).tolist()).items():
                found[base + local] = document
        return found

    def find(self, ids: Sequence[DocumentId]) -> dict[DocumentId, int]:
        """The positions of those of `ids` that are in the index and not deleted."""
        found: dict[DocumentId, int] = {}
        for store, base in zip(self.stores, self._bases, strict=False):
            for key, local in store.find(ids).items():
                if self.live is None or self.live[base + local]:
                    found[key] = base + local
        return found

    def positions(self, ids: Iterable[DocumentId], *, name: str) -> list[int]:
        """The position of each id, in order; errors speak of the argument `name`.

        Raises
        ------
        TypeError, ValueError
            An id is neither str nor int, or an int of more than 64 bits.
        UnknownDocumentError
            Ids that are not in the index; the message names up to five.
        """
        if isinstance(ids, (str, bytes)):
            raise TypeError(f"{name}: expected many ids, got one {type(ids).__name__}")
        wanted = [check_id(value, place, name=name) for place, value in enumerate(ids)]
        found = self.find(wanted)
        unknown = [value for value in wanted if value not in found]
        if unknown:
            shown = ", ".join(repr(value) for value in unknown[:_MAX_NAMED])
            more = f" and {len(unknown) - _MAX_NAMED} more" if len(unknown) > _MAX_NAMED else ""
            raise UnknownDocumentError(f"{name}: not in the index: {shown}{more}")
        return [found[value] for value in wanted]

    @functools.cached_property
    def ids(self) -> Sequence[DocumentId]:
        """All ids by position, deleted ones too; read on first use.

        The default ones, 0 to n - 1, are a range.
        """
        ids = [each for store in self.stores for each in store.read_ids()]
        counted = range(len(ids))
        return counted if ids == list(counted) else ids

    def check_unique(self) -> None:
        """Raise IndexFormatError if two documents that are not deleted have the same id."""
        seen: set[DocumentId] = set()
        for position, each in enumerate(self.ids):
            if self.live is None or self.live[position]:
                if each in seen:
                    raise IndexFormatError(
                        f"{self.stores[0].path.parent.parent}: two documents have the id {each!r}"
                    )
                seen.add(each)

    def before_close(self, reader: Reader) -> None:
        """Have ``reader.read()`` called by `close`, unless the reader is gone by then."""
        self._readers.add(reader)

    def close(self) -> None:
        """Close the files; any later read raises ValueError."""
        try:
            for reader in list(self._readers):
                reader.read()
        finally:
            self._readers.clear()
            for store in self.stores:
                store.close()
