"""What `Index.search` accepts as queries and as a subset, brought to one form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from colbert_fast.arrays import as_array
from colbert_fast.errors import CheckpointError, IndexFormatError
from colbert_fast.search.params import TEXT_MODES, SearchParams
from colbert_fast.storage.filters import matching, read_filter
from colbert_fast.storage.manifest import Manifest
from colbert_fast.storage.models import SETTINGS, check_model

if TYPE_CHECKING:
    from colbert_fast.model import ColBERT
    from colbert_fast.search.snapshot import Snapshot

__all__ = [
    "check_vectors",
    "filtered",
    "loaded_model",
    "model_of_index",
    "model_settings",
    "read_candidates",
    "read_id_lists",
    "read_mask",
    "read_queries",
    "read_subset",
    "read_texts",
]


def read_queries(query: Any) -> tuple[list[Any], bool]:
    """A list of queries (all texts, or all arrays), and whether one alone was given.

    Raises
    ------
    TypeError
        `query` is none of: a text, a list of texts, a (tokens, dim) or (n, tokens, dim) array,
        a list of (tokens, dim) arrays.
    """
    if isinstance(query, str):
        return [query], True
    if hasattr(query, "shape") and hasattr(query, "dtype"):
        array = as_array(query)
        if array.ndim == 2:
            return [array], True
        if array.ndim == 3:
            return list(array), False
        raise ValueError(
            f"query: expected shape (tokens, dim) or (n, tokens, dim), got {array.shape}"
        )
    if not isinstance(query, (list, tuple)):
        raise TypeError(
            "query: expected a text, an array of embeddings, or a list of either, got "
            f"{type(query).__name__}"
        )
    if all(isinstance(item, str) for item in query):
        return list(query), False
    texts = isinstance(query[0], str)
    for position, item in enumerate(query):
        is_array = hasattr(item, "shape") and hasattr(item, "dtype")
        if not (isinstance(item, str) if texts else is_array):
            wanted = "a text like the first" if texts else "an array, or texts throughout"
            raise TypeError(f"query[{position}]: expected {wanted}, got {type(item).__name__}")
    return [as_array(item) for item in query], False


def loaded_model(model: ColBERT | str | Path | None) -> ColBERT | None:
    """The model given, loaded if it is what `ColBERT.from_pretrained` takes."""
    if not isinstance(model, (str, Path)):
        return model
    from colbert_fast.model import ColBERT

    return ColBERT.from_pretrained(model)


def model_settings(manifest: Manifest) -> dict[str, Any]:
    """The lengths, prompts and so on of an index's model, as `ColBERT.from_pretrained` takes them.

    Raises
    ------
    IndexFormatError
        The manifest names others.
    """
    settings = dict(manifest.model_settings or {})
    unknown = settings.keys() - SETTINGS
    if unknown:
        raise IndexFormatError(f"manifest: unknown settings of a model: {sorted(unknown)}")
    return settings


def model_of_index(manifest: Manifest) -> ColBERT:
    """Load the model that an index was built with, with the lengths, prompts and so on it had.

    Raises
    ------
    ValueError
        The index names none, or the one found has another dim or other weights.
    CheckpointError
        It cannot be loaded.
    """
    name = manifest.model
    if name is None:
        raise ValueError(
            "this index was built from embeddings and names no model: say which one made them "
            '(model= of Index.open, --model; "default" is the offline one), or search with '
            "query embeddings"
        )
    from colbert_fast.model import ColBERT

    settings = model_settings(manifest)
    try:
        model = ColBERT.from_pretrained(None if name == "default" else name, **settings)
    except (CheckpointError, OSError) as error:
        raise CheckpointError(
            f"this index was built with the model {name!r}, which cannot be loaded ({error}); "
            "pass model=ColBERT.from_pretrained(...) to Index.open"
        ) from error
    check_model(manifest, model)
    return model


def check_vectors(queries: Iterable[npt.NDArray[Any]], dim: int) -> list[npt.NDArray[np.float32]]:
    """The queries as C-contiguous float32 (tokens, dim).

    Raises
    ------
    TypeError, ValueError
        A query is not of floats, has no tokens, another dim, or values that are not finite.
    """
    checked = []
    for position, query in enumerate(queries):
        if query.dtype.kind != "f":
            raise TypeError(f"query {position}: expected floats, got {query.dtype}")
        if query.ndim != 2 or len(query) == 0:
            raise ValueError(
                f"query {position}: expected (tokens, dim) with at least one token, got "
                f"{query.shape}"
            )
        if query.shape[1] != dim:
            raise ValueError(
                f"query {position}: dim is {query.shape[1]}, the index has dim {dim}; "
                "encode it with the model that the index was built with"
            )
        rows = query if query.dtype == np.float32 else _rounded(query)
        rows = np.ascontiguousarray(rows)
        # A sum of squares tells in one pass; only where it overflows need each value be looked at.
        if not math.isfinite(np.vdot(rows, rows)) and not np.isfinite(rows).all():
            raise ValueError(f"query {position}: holds NaN or infinite values")
        checked.append(rows)
    return checked


def _rounded(query: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return query.astype(np.float32)


def read_texts(texts: Any, queries: list[Any], single: bool, mode: str) -> list[str] | None:
    """What the queries say: themselves, or `texts` beside embeddings; None if nobody tells.

    Raises
    ------
    TypeError, ValueError
        The mode needs texts and there are none, or not as many as queries; or it needs none.
    """
    if texts is None:
        if not queries or isinstance(queries[0], str):
            return queries
        if mode in TEXT_MODES:
            raise ValueError(
                f"mode {mode!r} needs the queries' texts, and they were given as embeddings: pass "
                "texts= as well"
            )
        return None
    if mode not in TEXT_MODES:
        raise ValueError(f"texts= means nothing in mode {mode!r}; leave it out")
    given = [texts] if single else texts
    if not isinstance(given, (list, tuple)) or not all(isinstance(each, str) for each in given):
        wanted = "a text" if single else "a list of texts"
        raise TypeError(f"texts: expected {wanted}, got {type(texts).__name__}")
    if len(given) != len(queries):
        raise ValueError(f"texts: {len(given)} for {len(queries)} queries")
    return list(given)


def read_candidates(
    candidates: Any, queries: list[Any], single: bool, params: SearchParams, snapshot: Snapshot
) -> list[npt.NDArray[np.int64]] | None:
    """Positions, int64 (m,) for each query, of the ids of one query, or of a list of ids for each.

    Raises
    ------
    TypeError, ValueError
        There are not as many lists as queries, something in them is not an id, or `params` ask for
        another first stage.
    UnknownDocumentError
        Ids that are not in the index.
    """
    if candidates is None:
        return None
    if params.mode != "default" or params.exhaustive:
        raise ValueError("candidates are all that is scored: leave out mode and exhaustive")
    ids = read_id_lists("candidates", candidates, single)
    if len(ids) != len(queries):
        raise ValueError(f"candidates: {len(ids)} lists of ids for {len(queries)} queries")
    found = iter(snapshot.library.positions(itertools.chain(*ids), name="candidates"))
    return [np.fromiter(itertools.islice(found, len(each)), np.int64) for each in ids]


def read_id_lists(name: str, given: Any, single: bool) -> list[list[Any]]:
    """The ids of one query, or a list of ids for each of several, as lists.

    Raises
    ------
    TypeError
        A text or something else stands where ids are expected; the message names `name`.
    """
    wanted = "ids" if single else "a list of ids for each query"
    lists = [given] if single else given
    if isinstance(lists, str) or not isinstance(lists, Iterable):
        raise TypeError(f"{name}: expected {wanted}, got {type(lists).__name__}")
    ids = []
    for each in lists:
        if isinstance(each, str) or not isinstance(each, Iterable):
            raise TypeError(f"{name}: expected {wanted}, got {type(each).__name__}")
        ids.append(as_array(each).tolist() if hasattr(each, "dtype") else list(each))
    return ids


def read_mask(
    subset: Any,
    filter: Any,  # noqa: A002
    snapshot: Snapshot,
) -> npt.NDArray[np.bool_] | None:
    """What `subset` and `filter` both allow, bool (n_rows,) by position; None if neither is given.

    Raises
    ------
    TypeError, ValueError, UnknownDocumentError
        See `read_subset` and `filtered`.
    """
    mask = None if subset is None else read_subset(subset, snapshot)
    if filter is None:
        return mask
    found = filtered(filter, snapshot)
    return found if mask is None else found & mask


def filtered(filter: Any, snapshot: Snapshot) -> npt.NDArray[np.bool_]:  # noqa: A002
    """The documents that meet a filter, bool (n_rows,) by position, deleted ones among them.

    Raises
    ------
    TypeError, ValueError
        See `filters.read_filter` and `filters.matching`.
    """
    tables = [store.fields for store in snapshot.library.stores]
    parts = matching(tables, read_filter(filter))
    mask = np.zeros(snapshot.manifest.num_rows, np.bool_)
    for base, positions in zip(snapshot.bases(), parts, strict=False):
        mask[base + positions] = True
    return mask


def read_subset(subset: Any, snapshot: Snapshot) -> npt.NDArray[np.bool_]:
    """A mask by position, bool (n_rows,), from ids or from a mask by place in `Index.ids`.

    Raises
    ------
    TypeError, ValueError
        `subset` is one text, or a mask of another shape.
    UnknownDocumentError
        Ids that are not in the index.
    """
    if isinstance(subset, str) or not isinstance(subset, Iterable):
        raise TypeError(f"subset: expected ids or a boolean mask, got one {type(subset).__name__}")
    mask = np.zeros(snapshot.manifest.num_rows, np.bool_)
    values = as_array(subset) if hasattr(subset, "dtype") else None
    if values is not None and values.dtype == np.bool_:
        if values.shape != (snapshot.num_documents,):
            raise ValueError(
                f"subset: a mask must have shape ({snapshot.num_documents},), got {values.shape}"
            )
        mask[snapshot.positions[values]] = True
        return mask
    ids = subset if values is None else values.tolist()
    mask[snapshot.library.positions(ids, name="subset")] = True
    return mask
