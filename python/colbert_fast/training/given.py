"""Training tuples that somebody else has made, checked before anything is trained on them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from colbert_fast.training.collections import LoadedCollection
from colbert_fast.training.data import NWay, read_tuples

__all__ = ["given_tuples"]

logger = logging.getLogger(__name__)


def given_tuples(
    collection: LoadedCollection, path: Path, group_size: int | None
) -> Iterator[NWay]:
    """Read the tuples of a file once to check them, and then as a stream, in their order.

    Those of other questions than the collection's are left out, unless they are of groups.

    Raises
    ------
    ValueError
        A tuple has more or fewer documents than the first, or scores where that has none, or the
        other way round; it names a document that the collection does not have; none is left; or
        tuples of a group have different documents, or the last group is not whole.
    """
    left_out = without_positive = count = 0
    first = leader = None
    for number, item in enumerate(read_tuples(path), 1):
        if item.query_id not in collection.queries:
            left_out += 1
            continue
        where = f"{path}, tuple {number} (query {item.query_id!r})"
        first = first or item
        _check(item, first, collection, where)
        if group_size is not None:
            leader = item if leader is None or count % group_size == 0 else leader
            if set(item.document_ids) != set(leader.document_ids):
                raise ValueError(f"{where}: not the documents of its group of {group_size}")
        without_positive += item.document_ids[0] not in collection.positives[item.query_id]
        count += 1
    if count == 0:
        raise ValueError(f"{path}: no tuple of a question of the collection")
    if group_size is not None and (left_out or count % group_size):
        raise ValueError(
            f"{path}: {count} tuples and {left_out} of other questions than the collection's are "
            f"no groups of {group_size}"
        )
    for number, what in (
        (left_out, "are of other questions than the collection's, and left out"),
        (without_positive, "do not begin with a positive, as all losses but kl want it"),
    ):
        if number:
            logger.warning("%s: %d tuples %s", path, number, what)
    return (item for item in read_tuples(path) if item.query_id in collection.queries)


def _check(item: NWay, first: NWay, collection: LoadedCollection, where: str) -> None:
    if len(item.document_ids) != len(first.document_ids):
        raise ValueError(
            f"{where}: {len(item.document_ids)} documents; the first has {len(first.document_ids)}"
        )
    if (item.scores is None) != (first.scores is None):
        raise ValueError(f"{where}: scores must be there for all tuples or for none")
    for name in item.document_ids:
        if name not in collection.documents:
            raise ValueError(f"{where}: no text for document {name!r}")
