"""What a search returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from colbert_fast.storage.documents import DocumentId, DocumentStore

if TYPE_CHECKING:
    from colbert_fast.model import ColBERT
    from colbert_fast.search.explain import Match

__all__ = ["Hit", "make_hits"]


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
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    _query: dataclasses.InitVar[str | None] = None
    _model: dataclasses.InitVar[ColBERT | None] = None

    def __post_init__(self, _query: str | None, _model: ColBERT | None) -> None:
        # Not fields: `asdict` would copy the model, and a pickle would hold its weights.
        object.__setattr__(self, "_query", _query)
        object.__setattr__(self, "_model", _model)

    def __getstate__(self) -> dict[str, Any]:
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
        query, model = vars(self).get("_query"), vars(self).get("_model")
        if query is None or model is None:
            raise ValueError(
                f"hit {self.id!r}: the query was given as embeddings, or the hit is a copy or from "
                "a pickle; explain what a search with the query's text returns"
            )
        from colbert_fast.search.explain import explain

        return explain(model, query, self.text)


def make_hits(
    store: DocumentStore,
    pids: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    texts: Sequence[str] | None,
    model: ColBERT | None,
) -> list[list[Hit]]:
    """Hits for each row of positions and scores (queries, k); positions below 0 are left out.

    `texts` are the queries, where they were texts, and `model` encoded them.
    """
    documents = store.fetch(pids[pids >= 0].tolist())
    results = []
    for row, (row_pids, row_scores) in enumerate(zip(pids.tolist(), scores.tolist(), strict=True)):
        query = None if texts is None else texts[row]
        hits = []
        for pid, score in zip(row_pids, row_scores, strict=True):
            if pid >= 0:
                found = documents[pid]
                hits.append(Hit(found.id, score, found.text, found.metadata or {}, query, model))
        results.append(hits)
    return results
