"""Training tuples that somebody else has made, checked before anything is trained on them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from colbert_fast.training.collections import LoadedCollection
from colbert_fast.training.data import NWay, read_tuples
from colbert_fast.training.recipe import Mining

__all__ = ["given_tuples"]

logger = logging.getLogger(__name__)


def given_tuples(collection: LoadedCollection, settings: Mining) -> Iterator[NWay]:
    """Stream the tuples of a collection that `Mining.tuples` names, in their order.

    Those of other questions than the collection's are left out, unless they are of groups.

    Raises
    ------
    ValueError
        A tuple has fewer documents than the first or, other than that, scores or none; it names a
        document that the collection does not have; or none is left, or no whole number of groups.
    """
    path = Path((settings.tuples or {})[collection.name])
    left_out = without_positive = count = 0
    first: NWay | None = None
    for number, item in enumerate(read_tuples(path), 1):
        if item.query_id not in collection.queries:
            left_out += 1
            continue
        first = first or item
        _check(item, first, collection, f"{path}, tuple {number} (query {item.query_id!r})")
        without_positive += item.document_ids[0] not in collection.positives[item.query_id]
        count += 1
        yield item
    if count == 0:
        raise ValueError(f"{path}: no tuple of a question of the collection")
    if settings.group_size is not None and (left_out or count % settings.group_size):
        raise ValueError(
            f"{path}: {count} tuples and {left_out} of other questions than the collection's are "
            f"no groups of {settings.group_size}"
        )
    for number, what in (
        (left_out, "are of other questions than the collection's, and left out"),
        (without_positive, "do not begin with a positive, as all losses but kl want it"),
    ):
        if number:
            logger.warning("%s: %d tuples %s", path, number, what)


def _check(item: NWay, first: NWay, collection: LoadedCollection, where: str) -> None:
    if len(item.document_ids) < len(first.document_ids):
        raise ValueError(
            f"{where}: {len(item.document_ids)} documents; the first has {len(first.document_ids)}"
        )
    if (item.scores is None) != (first.scores is None):
        raise ValueError(f"{where}: scores must be there for all tuples or for none")
    for name in item.document_ids:
        if name not in collection.documents:
            raise ValueError(f"{where}: no text for document {name!r}")
