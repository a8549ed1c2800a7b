"""What a trainer reads: texts, tuples of their ids, and the examples that they make together."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple, overload

import numpy as np

from colbert_fast.errors import UnknownDocumentError
from colbert_fast.evaluation import load_beir
from colbert_fast.training.texts import Texts
from colbert_fast.training.tuple_files import TupleFile, read_tuples, write_tuples
from colbert_fast.training.tuples import NWay, checked

__all__ = [
    "Example",
    "NWay",
    "Texts",
    "TrainingData",
    "TupleFile",
    "graded",
    "read_tuples",
    "training_positives",
    "write_tuples",
]

logger = logging.getLogger(__name__)


class Example(NamedTuple):
    """The texts of one tuple.

    Attributes
    ----------
    query
    documents
        The positive first, where there is one.
    scores
        The teacher's for each document, or None.
    query_id, document_ids
        Where the texts come from.
    """

    query: str
    documents: tuple[str, ...]
    scores: tuple[float, ...] | None
    query_id: str
    document_ids: tuple[str, ...]


class TrainingData(Sequence[Example]):
    """Examples with the same number of documents each, looked up as they are asked for.

    Parameters
    ----------
    queries, documents
        Id to text.
    tuples
        A `TupleFile`, or any sequence of tuples.
    nway
        Documents of each example: the first of a tuple, and a sample of the others in their order.
        By default as many as the first tuple has.
    seed
        Of the samples. The sample of a tuple depends on it and on the tuple's place alone.

    Raises
    ------
    ValueError
        `nway` is below 1; or, when it is asked for, a tuple has fewer documents than that, or
        scores that are not finite or not one for each document.
    UnknownDocumentError
        When it is asked for: an id of a tuple has no text. The message names the tuple, in a
        `TupleFile` by file and line.
    """

    def __init__(
        self,
        queries: Mapping[str, str],
        documents: Mapping[str, str],
        tuples: Sequence[NWay],
        *,
        nway: int | None = None,
        seed: int = 0,
    ) -> None:
        if len(tuples) == 0:
            raise ValueError("`tuples` must hold at least one tuple; got none")
        self.queries = queries if isinstance(queries, Texts) else Texts(queries, name="queries")
        self.documents = (
            documents if isinstance(documents, Texts) else Texts(documents, name="documents")
        )
        self.tuples = tuples
        self.nway = len(tuples[0].document_ids) if nway is None else nway
        self.seed = seed
        if self.nway < 1:
            raise ValueError(f"`nway` must be at least 1; got {nway}")

    def __len__(self) -> int:
        return len(self.tuples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self._example(place) for place in range(len(self))[index]]
        return self._example(range(len(self))[index])

    def _example(self, index: int) -> Example:
        query_id, document_ids, scores = self._choose(index)
        try:
            query, texts = self.queries[query_id], self.documents.many(document_ids)
        except UnknownDocumentError as error:
            raise UnknownDocumentError(f"{self._where(index)}: {error}") from error
        return Example(query, tuple(texts), scores, query_id, document_ids)

    def _choose(self, index: int) -> NWay:
        try:
            item = checked(*self.tuples[index])
        except ValueError as error:
            raise ValueError(f"{self._where(index)}: {error}") from error
        count = len(item.document_ids)
        if count < self.nway:
            raise ValueError(
                f"{self._where(index)}: {count} documents, wanted `nway` = {self.nway} or more"
            )
        if count == self.nway:
            return item
        rng = np.random.default_rng((self.seed, index))
        others = 1 + rng.choice(count - 1, self.nway - 1, replace=False)
        chosen = [0, *sorted(others.tolist())]
        scores = item.scores
        return NWay(
            item.query_id,
            tuple(item.document_ids[place] for place in chosen),
            None if scores is None else tuple(scores[place] for place in chosen),
        )

    def _where(self, index: int) -> str:
        tuples = self.tuples
        return tuples.where(index) if isinstance(tuples, TupleFile) else f"tuples[{index}]"

    def __repr__(self) -> str:
        return f"TrainingData(examples={len(self)}, nway={self.nway}, seed={self.seed})"


def training_positives(
    folder: str | os.PathLike[str], split: str = "train", *, min_grade: int = 1
) -> dict[str, dict[str, int]]:
    """The documents that answer each query of a BEIR folder: query id to {document id: grade}.

    Parameters
    ----------
    folder
        As for `evaluation.load_beir`, which raises what is to be raised.
    split
        Which judgements.
    min_grade
        The lowest grade of a positive. Queries without one are left out; how many is logged.
    """
    qrels = load_beir(os.fspath(folder), split=split).qrels
    return graded(qrels, min_grade, name=f"{os.fspath(folder)}: split {split}")


def graded(
    qrels: Mapping[str, Mapping[str, int]], min_grade: int, *, name: str
) -> dict[str, dict[str, int]]:
    """The judgements of `min_grade` or more, of queries that have one; `name` is for the log."""
    positives = {
        query: {document: grade for document, grade in grades.items() if grade >= min_grade}
        for query, grades in qrels.items()
    }
    found = {query: grades for query, grades in positives.items() if grades}
    if len(found) < len(qrels):
        logger.warning(
            "%s: %d of %d judged queries have no document of grade %d or more",
            name,
            len(qrels) - len(found),
            len(qrels),
            min_grade,
        )
    return found
