"""The specification of MaxSim and its gradients; part of :mod:`colbert_fast.kernels.reference`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt

__all__ = ["maxsim", "maxsim_grad_documents", "maxsim_grad_query", "offsets_of", "sum_of_best"]

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


def offsets_of(lengths: Array) -> Int64:
    """Where each row of a concatenation starts, and where the last ends: int64 (n + 1,)."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def sum_of_best(similarities: Array, doclens: Array) -> tuple[Float32, Int32]:
    """MaxSim from similarities (nq, n): scores (n_docs,) and argmax (n_docs, nq)."""
    starts = offsets_of(doclens)
    n_docs, nq = len(doclens), len(similarities)
    scores = np.full(n_docs, -np.inf, np.float32)
    best = np.full((n_docs, nq), -1, np.int32)
    for doc in np.flatnonzero(doclens):
        block = similarities[:, starts[doc] : starts[doc + 1]]
        scores[doc] = block.max(axis=1).sum()
        best[doc] = block.argmax(axis=1)
    return scores, best


def maxsim(
    query: Float32,
    documents: Array,
    doclens: Int32,
    *,
    documents_per_query: int | None = None,
    return_argmax: bool = False,
) -> Float32 | tuple[Float32, Int32]:
    """Sum over query tokens of the best dot product within each document.

    Parameters
    ----------
    query : float32 (nq, dim) or (b, nq, dim)
    documents : float32, float16 or bfloat16 (n, dim)
    doclens : int32 (n_docs,)
    documents_per_query : int, optional
        Columns of the results: query i meets its own documents only, the i-th so many.
    return_argmax : bool
        Also return which token of the document was met, the lowest of equal ones.

    Returns
    -------
    scores : float32 (n_docs,) or (b, n_docs)
        -inf for a document without tokens.
    argmax : int32 (..., n_docs, nq)
        Token index within the document; -1 for a document without tokens.
    """
    documents = documents.astype(np.float64)
    batch = query.astype(np.float64)[None] if query.ndim == 2 else query.astype(np.float64)
    results = [sum_of_best(one @ documents.T, doclens) for one in batch]
    shape = (len(batch), len(doclens))
    scores = np.array([r[0] for r in results], np.float32).reshape(shape)
    best = np.array([r[1] for r in results], np.int32).reshape(*shape, query.shape[-2])
    if documents_per_query is not None:
        own = np.arange(len(doclens)).reshape(len(batch), documents_per_query)
        scores = np.take_along_axis(scores, own, 1)
        best = np.take_along_axis(best, own[..., None], 1)
    if query.ndim == 2:
        scores, best = scores[0], best[0]
    return (scores, best) if return_argmax else scores


def _met(doclens: Int32, argmax: Int32) -> Iterator[tuple[int, int, int, int]]:
    """What met what: query, column of the results, query token, row of the documents' tokens."""
    (b, columns, nq), starts = argmax.shape, offsets_of(doclens)
    for query, column, token in np.ndindex(b, columns, nq):
        document = column if columns == len(doclens) else query * columns + column
        if (met := argmax[query, column, token]) >= 0:
            yield query, column, token, int(starts[document] + met)


def maxsim_grad_query(documents: Array, doclens: Int32, argmax: Int32, grad: Float32) -> Float32:
    """Gradient of :func:`maxsim` by the query: float32 (b, nq, dim).

    ``argmax`` (b, columns, nq) and ``grad`` (b, columns), the gradient by the scores, are for all
    documents or for each query's own.
    """
    documents = documents.astype(np.float64)
    out = np.zeros((len(argmax), argmax.shape[2], documents.shape[1]))
    for b, column, token, row in _met(doclens, argmax):
        out[b, token] += grad[b, column] * documents[row]
    return cast(Float32, out.astype(np.float32))


def maxsim_grad_documents(
    query: Float32,
    doclens: Int32,
    argmax: Int32,
    grad: Float32,
    *,
    n_tokens: int | None = None,
) -> Float32:
    """Gradient of :func:`maxsim` by the documents: float32 (n_tokens, dim). Arguments as above."""
    query = query.astype(np.float64)
    out = np.zeros((int(doclens.sum()) if n_tokens is None else n_tokens, query.shape[2]))
    for b, column, token, row in _met(doclens, argmax):
        out[row] += grad[b, column] * query[b, token]
    return cast(Float32, out.astype(np.float32))
