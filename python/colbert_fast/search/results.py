"""What a search returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from colbert_fast.storage.documents import Document, DocumentId
from colbert_fast.storage.library import Library

if TYPE_CHECKING:
    from colbert_fast.model import ColBERT
    from colbert_fast.search.explain import Match

__all__ = ["Hit", "asked", "make_hits"]


# A factory, because a plain default would be found on the class before `__getattr__` is asked.
def _no_text() -> str | None:
    return None


@dataclasses.dataclass(frozen=True)
class Hit:
    """One document found.

    Text and metadata are read from the index when they are first looked at, those of all hits of
    the query together; closing the index reads them first.

    Attributes
    ----------
    id
        The document's id, of the type it was given with.
    score
        MaxSim of the query and the document's stored (decompressed) vectors; in mode "hybrid" that
        and BM25 fused.
    text
        The document's text, or None if the index was built from embeddings alone.
    metadata
        The further keys of the document; empty if there were none.
    """

    id: DocumentId
    score: float
    text: str | None = dataclasses.field(default_factory=_no_text, hash=False)
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    if not TYPE_CHECKING:  # else any attribute would pass for one

        def __getattr__(self, name: str) -> Any:
            answer = vars(self).get("_answer")
            if answer is None or name not in ("text", "metadata"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            document = answer.document(vars(self)["_position"])
            vars(self).update(text=document.text, metadata=document.metadata or {})
            return vars(self)[name]

    def __getstate__(self) -> dict[str, Any]:
        # Of the fields alone: a pickle would hold the model's weights.
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}

    def explain(self) -> list[Match]:
        """Which query token met which document token, with its place in the text.

        Encodes the query and the text again, so scores are those of the uncompressed vectors.

        Raises
        ------
        ValueError
            The index holds no text, the query was given as embeddings, or the hit was copied or
            pickled, which leaves query and model behind.
        """
        if self.text is None:
            raise ValueError(f"hit {self.id!r} has no text: the index was built from embeddings")
        answer = vars(self).get("_answer")
        if answer is None or answer.query is None or answer.model is None:
            raise ValueError(
                f"hit {self.id!r}: the query was given as embeddings, or the hit is a copy or from "
                "a pickle; explain what a search with the query's text returns"
            )
        from colbert_fast.search.explain import explain

        return explain(answer.model, answer.query, self.text)


class Answer:
    """What the hits of one query share: the query, and the documents once one was looked at."""

    __slots__ = ("__weakref__", "_documents", "_library", "_positions", "model", "query")

    def __init__(
        self,
        library: Library,
        positions: Sequence[int],
        query: str | None,
        model: ColBERT | None,
    ) -> None:
        self.query = query
        self.model = model
        self._library = library
        self._positions = positions
        self._documents: dict[int, Document] | None = None
        library.before_close(self)

    def read(self) -> dict[int, Document]:
        """The documents by position, read from the library the first time."""
        if self._documents is None:
            self._documents = self._library.fetch(self._positions)
        return self._documents

    def document(self, position: int) -> Document:
        """One of the documents."""
        return self.read()[position]


def make_hits(
    library: Library,
    pids: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    texts: Sequence[str] | None,
    model: ColBERT | None,
) -> list[list[Hit]]:
    """Hits for each row of positions and scores (queries, k); a row ends at its first -1.

    `texts` are the queries, where they were texts, and `model` encoded them.
    """
    ids = library.ids
    results = []
    for row, (positions, values) in enumerate(zip(pids.tolist(), scores.tolist(), strict=True)):
        if positions and positions[-1] < 0:
            positions = positions[: positions.index(-1)]
        answer = Answer(library, positions, None if texts is None else texts[row], model)
        results.append(
            [
                _hit(ids[position], score, answer, position)
                for position, score in zip(positions, values, strict=False)
            ]
        )
    return results


def asked(hits: Iterable[Hit], query: str, model: ColBERT) -> None:
    """Tell hits that were found by vectors which text these are of, so that they can explain."""
    for hit in hits:
        answer = vars(hit)["_answer"]
        answer.query, answer.model = query, model


def _hit(document: DocumentId, score: float, answer: Answer, position: int) -> Hit:
    """A hit whose text and metadata are still in the library: there are many, and few are read."""
    hit = object.__new__(Hit)
    vars(hit).update(id=document, score=score, _answer=answer, _position=position)
    return hit
