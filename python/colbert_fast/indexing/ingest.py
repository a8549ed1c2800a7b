"""Documents in, chunks of checked float16 token vectors out: the front half of a build."""

from __future__ import annotations

import bisect
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from colbert_fast.arrays import as_array
from colbert_fast.corpus import join_title
from colbert_fast.kernels import ops
from colbert_fast.storage.documents import (
    Document,
    DocumentId,
    DocumentWriter,
    check_id,
    check_many,
)

if TYPE_CHECKING:
    from colbert_fast.indexing.resume import ResumableEncoder
    from colbert_fast.model import ColBERT

__all__ = ["Chunk", "TokenStream", "check_documents", "length_of", "read_documents"]

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 25  # float16 vectors per chunk: 32 MiB, 131,072 tokens of 128 dimensions
_BATCH_BYTES = 1 << 19  # checked together: few calls into numpy, and all of it stays in the cache
_RESERVED = ("_id", "id", "text", "embeddings")
_UNIT_TOLERANCE = 1e-3  # float16 rounding moves a norm by less than 5e-4


def read_documents(
    documents: Iterable[Any], ids: Iterable[DocumentId] | None = None, *, first_id: int = 0
) -> Iterator[Document]:
    """Bring every accepted form of a document to a `Document`, lazily and in order.

    Parameters
    ----------
    documents
        Items are a text; ``(id, text)``; ``(id, embeddings)``; a dict with "text" and/or
        "embeddings", optionally "id", and any further keys as metadata; the same with "_id", as
        BEIR's records have it, whose "title" is put before the text as `corpus.read_corpus` does;
        or the embeddings themselves, shape (tokens, dim).
    ids
        One id per document, for items that carry none. Without it their ids are their positions.
    first_id
        Is added to these. Beyond a larger number among the ids so far they go on from that one.

    Raises
    ------
    TypeError, ValueError
        An item has no accepted form, or `ids` is shorter or longer than `documents`.
    """
    given = None if ids is None else iter(ids)
    position, free = -1, first_id
    for position, item in enumerate(documents):
        fallback: Any = max(first_id + position, free)
        if given is not None:
            try:
                fallback = next(given)
            except StopIteration:
                raise ValueError(f"ids: {position} given, but there are more documents") from None
        own_id, *content = _read_item(item, position)
        if own_id is None and given is None and fallback >= 2**63:
            raise ValueError(
                f"documents[{position}] carries no id, and the next number, {fallback}, does not "
                "fit in 64 bits: pass ids="
            )
        if own_id is not None and given is not None:
            raise ValueError(f"ids: document {position} already carries the id {own_id!r}")
        chosen = check_id(fallback if own_id is None else own_id, position)
        if isinstance(chosen, int):
            free = max(free, chosen + 1)
        yield Document(chosen, *content)
    for extra in given or ():
        raise ValueError(f"ids: more than the {position + 1} documents; the next is {extra!r}")


# An id (None: it carries none), text, metadata and embeddings.
_Item = tuple[Any, str | None, dict[str, Any] | None, Any]


def _read_item(item: Any, position: int) -> _Item:
    if isinstance(item, Mapping):
        return _read_mapping(item, position)
    if isinstance(item, tuple):
        if len(item) != 2:
            raise ValueError(
                f"documents[{position}]: a tuple must be (id, text) or (id, embeddings), "
                f"got {len(item)} elements"
            )
        if item[0] is None:
            raise TypeError(f"documents[{position}]: the id is None")
        return _read_content(item[0], item[1], position)
    return _read_content(None, item, position)


def _read_content(own_id: Any, value: Any, position: int) -> _Item:
    if isinstance(value, str):
        return own_id, value, None, None
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return own_id, None, None, value
    raise TypeError(
        f"documents[{position}]: expected a text, (id, text), a dict or a (tokens, dim) array, "
        f"got {type(value).__name__}"
    )


def _read_mapping(item: Mapping[str, Any], position: int) -> _Item:
    metadata = {key: value for key, value in item.items() if key not in _RESERVED}
    text, embeddings = item.get("text"), item.get("embeddings")
    if text is None and embeddings is None:
        raise ValueError(
            f'documents[{position}]: a dict needs "text" or "embeddings", got keys {list(item)}'
        )
    if text is not None and not isinstance(text, str):
        raise TypeError(f'documents[{position}]: "text" must be a str, got {type(text).__name__}')
    title = item.get("title")
    if "_id" in item and text is not None and isinstance(title, str):
        text = join_title(title, text)
    return item.get("_id", item.get("id")), text, metadata or None, embeddings


def length_of(*sources: Any) -> int | None:
    """How many there will be, where any of the sources knows."""
    for source in sources:
        if isinstance(source, Sized):
            return len(source)
    return None


def check_documents(
    documents: Iterable[Any], ids: Iterable[DocumentId] | None, *, first_id: int = 0
) -> None:
    """Read a list of documents to its end before any work is done on it, for bad items and ids.

    A stream cannot be read twice: there the same mistakes are found as the documents arrive.

    Raises
    ------
    TypeError, ValueError
        `check_many` refuses one of the two, an item or id is as `read_documents` refuses it, or
        two ids are the same.
    """
    check_many("documents", documents)
    check_many("ids", ids)
    if not isinstance(documents, (list, tuple)) or not (ids is None or hasattr(ids, "__len__")):
        return
    seen: set[DocumentId] = set()
    for document in read_documents(documents, ids, first_id=first_id):
        if document.id in seen:
            raise ValueError(
                f"ids must be unique: {document.id!r} is the id of more than one document"
            )
        seen.add(document.id)


class Chunk(NamedTuple):
    """Whole documents: float16 unit vectors (sum of doclens, dim) and int32 doclens (n_docs,)."""

    embeddings: npt.NDArray[np.float16]
    doclens: npt.NDArray[np.int32]


class TokenStream:
    """Encode or take over the documents of a build, check them, and hand them on in chunks.

    Iterating writes each document's id, text and metadata to `store` as it is read, and yields
    `Chunk`s of about 32 MiB, of less when they are pooled. After the last one `num_documents` and
    `num_tokens` are the totals that were read.

    Parameters
    ----------
    documents
        From `read_documents`; all with texts or all with embeddings.
    store
        Where ids, texts and metadata go.
    model
        Encodes documents that come without embeddings.
    pool_factor
        Tokens merged into one on average, see `ops.pool`; the means are scaled to unit length.
    expected
        How many documents there will be, if that is known.
    progress
        Show a progress bar (the encoder's own for texts, which it takes in large windows).
    dim
        What the documents must have; 0: what the first one has.
    """

    def __init__(
        self,
        documents: Iterator[Document],
        store: DocumentWriter,
        *,
        model: ColBERT | ResumableEncoder | None,
        pool_factor: int,
        expected: int | None,
        progress: bool,
        dim: int = 0,
    ) -> None:
        self.num_documents = 0
        self.num_tokens = 0
        self.dim = dim
        self._empty_texts = 0
        self._rescaled = 0
        self._documents = documents
        self._store = store
        self._model = model
        self._pool_factor = pool_factor
        self._expected = expected
        self._progress = progress

    def __iter__(self) -> Iterator[Chunk]:
        checked: list[npt.NDArray[np.float16]] = []
        doclens: list[int] = []
        waiting = 0
        for batch in self._batches():
            checked.append(self._stored(batch))
            doclens += map(len, batch)
            waiting += len(checked[-1])
            if waiting * self.dim * 2 >= _CHUNK_BYTES:
                yield self._chunk(checked, doclens)
                checked, doclens, waiting = [], [], 0
        if self.num_documents != self._store.count:
            raise RuntimeError(
                f"the model returned {self.num_documents} of {self._store.count} documents"
            )
        if checked:
            yield self._chunk(checked, doclens)
        self._report()

    def _batches(self) -> Iterator[list[npt.NDArray[Any]]]:
        """Copies of the documents' vectors, as many of one dtype as are checked together."""
        batch: list[npt.NDArray[Any]] = []
        waiting = 0
        for rows in self._embeddings():
            self._check_shape(rows)
            if batch and rows.dtype != batch[0].dtype:
                yield batch
                batch, waiting = [], 0
            batch.append(np.array(rows))  # a source may fill its buffer again
            waiting += len(rows)
            self.num_documents += 1
            if waiting * self.dim * 2 >= min(_BATCH_BYTES, _CHUNK_BYTES):
                yield batch
                batch, waiting = [], 0
        if batch:
            yield batch

    def _embeddings(self) -> Iterator[npt.NDArray[Any]]:
        """One array per document, in order."""
        first = next(self._documents, None)
        if first is None:
            raise ValueError("no documents: an index needs at least one")
        if first.embeddings is None:
            yield from self._encoded(first)
            return
        bar = tqdm(
            itertools.chain([first], self._documents),
            desc="read documents",
            total=self._expected,
            unit="doc",
            disable=not self._progress,
        )
        for document in bar:
            if document.embeddings is None:
                raise ValueError(f"document {document.id!r} has no embeddings, earlier ones have")
            self._store.add(document)
            yield as_array(document.embeddings)

    def _encoded(self, first: Document) -> Iterator[npt.NDArray[Any]]:
        if self._model is None:
            raise ValueError(
                "documents are texts, so a model is needed to encode them: pass "
                "model=ColBERT.from_pretrained(...)"
            )
        texts = _Hinted(self._texts(first), self._expected)
        for rows in self._model.encode_documents(texts, progress=self._progress):
            yield as_array(rows)

    def _texts(self, first: Document) -> Iterator[str]:
        """The texts for the encoder, which may read ahead; stored as they are read."""
        document: Document | None = first
        while document is not None:
            if document.text is None or document.embeddings is not None:
                raise ValueError(f"document {document.id!r} has embeddings, earlier ones have none")
            self._empty_texts += not document.text.strip()
            self._store.add(document)
            yield document.text
            document = next(self._documents, None)

    def _check_shape(self, rows: npt.NDArray[Any]) -> None:
        position = self.num_documents
        if rows.ndim != 2:
            raise ValueError(
                f"{self._name(position)}: embeddings must have the shape (tokens, dim), got "
                f"{rows.shape}; a single document goes in a list"
            )
        if rows.dtype.kind != "f":
            raise TypeError(f"{self._name(position)}: embeddings must be floats, got {rows.dtype}")
        self.dim = self.dim or rows.shape[1]
        if rows.shape[1] != self.dim or not self.dim:
            raise ValueError(
                f"{self._name(position)}: dim is {rows.shape[1]}, other documents have {self.dim}"
            )
        if self._model is not None and self.dim != self._model.dim:
            raise ValueError(
                f"{self._name(position)}: dim is {self.dim}, the model's is {self._model.dim}; "
                "pass the model that made the embeddings, or none"
            )
        if len(rows) == 0:
            raise ValueError(f"{self._name(position)}: no token vectors (0, {self.dim})")

    def _name(self, position: int) -> str:
        return f"document {self._store.id_of(position)!r}"

    def _stored(self, batch: list[npt.NDArray[Any]]) -> npt.NDArray[np.float16]:
        """The vectors of the documents last read, of unit length and in float16."""
        rows = np.concatenate(batch)
        norms = _norms(rows)
        off = np.flatnonzero(~(np.abs(norms - 1) <= _UNIT_TOLERANCE))
        if len(off):
            bad = off[_unusable(norms[off])]
            if len(bad):
                what = "is zero" if norms[bad[0]] == 0 else "is not finite"
                ends = np.cumsum([len(each) for each in batch])
                place = bisect.bisect_right(ends, bad[0])
                token = bad[0] - (ends[place] - len(batch[place]))
                name = self._name(self.num_documents - len(batch) + place)
                raise ValueError(f"{name}: token vector {token} {what}")
            rows = rows.astype(np.result_type(rows.dtype, norms.dtype), copy=False)
            rows[off] /= norms[off, None]
            self._rescaled += len(off)
        self.num_tokens += len(rows)
        return rows.astype(np.float16, copy=False)

    def _chunk(self, checked: list[npt.NDArray[np.float16]], lengths: list[int]) -> Chunk:
        """The last of the documents so far, pooled all at once."""
        rows, doclens = np.concatenate(checked), np.array(lengths, np.int32)
        if self._pool_factor > 1:
            means, doclens = ops.pool(rows, doclens, self._pool_factor)
            norms = np.linalg.norm(means, axis=1, keepdims=True)
            if not norms.all():
                where = int(np.searchsorted(np.cumsum(doclens), norms.argmin(), side="right"))
                name = self._name(self.num_documents - len(lengths) + where)
                raise ValueError(f"{name}: token vectors cancel out when they are pooled")
            rows = (means / norms).astype(np.float16)
        return Chunk(rows, doclens)

    def _report(self) -> None:
        if self._empty_texts:
            logger.warning("%d of %d documents are empty", self._empty_texts, self.num_documents)
        if self._rescaled:
            message = "%d of %d token vectors were not of unit length and have been normalised"
            logger.warning(message, self._rescaled, self.num_tokens)


class _Hinted(Iterator[str]):
    """An iterator that tells, for progress bars, how many items it expects to give."""

    def __init__(self, items: Iterator[str], expected: int | None) -> None:
        self._items = items
        self._expected = expected

    def __next__(self) -> str:
        return next(self._items)

    def __length_hint__(self) -> int:
        return NotImplemented if self._expected is None else self._expected


def _norms(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Row norms; in float64 when squares in float32 would overflow or lose bits."""
    with np.errstate(all="ignore"):
        wide = rows.astype(np.float32, copy=False)
        norms: npt.NDArray[Any] = np.sqrt(np.einsum("ij,ij->i", wide, wide))
        if not ((norms > 1e-15) & (norms < 1e15)).all():
            norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    return norms


def _unusable(norms: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which rows have no direction: zero, NaN or infinite."""
    unusable: npt.NDArray[np.bool_] = ~np.isfinite(norms) | (norms == 0)
    return unusable
