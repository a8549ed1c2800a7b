"""What a search returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from colbert_fast.storage.documents import DocumentId

if TYPE_CHECKING:
    from colbert_fast.model import ColBERT
    from colbert_fast.search.explain import Match

__all__ = ["Hit"]


@dataclasses.dataclass(frozen=True)
class Hit:
    """One document found.

    Attributes
    ----------
    id
        The document's id, of the type it was given with.
    score
        MaxSim of the query and the document's stored (decompressed) vectors.
    text
        The document's text, or None if the index was built from embeddings alone.
    metadata
        The further keys of the document; empty if there were none.
    """

    id: DocumentId
    score: float
    text: str | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    _query: str | None = dataclasses.field(default=None, repr=False, compare=False)
    _model: ColBERT | None = dataclasses.field(default=None, repr=False, compare=False)

    def explain(self) -> list[Match]:
        """Which query token met which document token, with its place in the text.

        Encodes the query and the text again, so scores are those of the uncompressed vectors.

        Raises
        ------
        ValueError
            The index holds no text, or the query was given as embeddings.
        """
        if self.text is None:
            raise ValueError(f"hit {self.id!r} has no text: the index was built from embeddings")
        if self._query is None or self._model is None:
            raise ValueError(
                f"hit {self.id!r}: the query was given as embeddings; search with its text to "
                "explain hits"
            )
        from colbert_fast.search.explain import explain

        return explain(self._model, self._query, self.text)
