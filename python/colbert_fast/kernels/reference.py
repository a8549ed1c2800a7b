"""The specification of every kernel and of the search pipeline, in plain numpy.

Each function is the twin of the function of the same name in :mod:`colbert_fast.kernels.ops`: same
arguments, same results, float64 inside wherever the definition allows it, one obvious line where
the kernel has a hundred. Nothing here is optimised and nothing here checks its arguments: messages
for invalid input belong to the kernels' door.

Shapes: ``K`` centroids of ``dim`` dimensions, ``n`` token vectors laid end to end, ``n_docs``
documents whose lengths are ``doclens`` (their sum is ``n``), ``nq`` query tokens. ``dim`` is a
multiple of 8. Values are finite.

Sources: MaxSim, Khattab and Zaharia 2020 (ColBERT), section 3.3; the residual codec, Santhanam et
al. 2021 (ColBERTv2), section 3.3; the trellis, Marcellin and Fischer 1990; the search stages,
Santhanam et al. 2022 (PLAID), section 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from colbert_fast.kernels.reference_kmeans import accumulate as accumulate
from colbert_fast.kernels.reference_kmeans import assign as assign
from colbert_fast.kernels.reference_maxsim import maxsim as maxsim
from colbert_fast.kernels.reference_maxsim import maxsim_grad_documents as maxsim_grad_documents
from colbert_fast.kernels.reference_maxsim import maxsim_grad_query as maxsim_grad_query
from colbert_fast.kernels.reference_maxsim import offsets_of, sum_of_best
from colbert_fast.kernels.reference_pooling import pool as pool
from colbert_fast.kernels.reference_residual import TABLE_ZERO as TABLE_ZERO
from colbert_fast.kernels.reference_residual import byte_scores as byte_scores
from colbert_fast.kernels.reference_residual import compress as compress
from colbert_fast.kernels.reference_residual import compress_trellis as compress_trellis
from colbert_fast.kernels.reference_residual import decode_inverse_norms as decode_inverse_norms
from colbert_fast.kernels.reference_residual import decode_scales as decode_scales
from colbert_fast.kernels.reference_residual import decompress as decompress
from colbert_fast.kernels.reference_residual import int8_products as int8_products
from colbert_fast.kernels.reference_residual import inverse_norms as inverse_norms
from colbert_fast.kernels.reference_residual import pack_codes as pack_codes
from colbert_fast.kernels.reference_residual import pack_residuals as pack_residuals
from colbert_fast.kernels.reference_residual import unpack_codes as unpack_codes
from colbert_fast.kernels.reference_residual import unpack_residuals as unpack_residuals
from colbert_fast.kernels.reference_residual import values_of as values_of
from colbert_fast.kernels.reference_residual import windows as windows

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]

EMPTY_APPROXIMATE_SCORE = -9999.0
"""Score of a query token in :func:`approximate_maxsim` with no document token to meet (PLAID)."""


class InvertedLists(NamedTuple):
    """For each centroid the ascending ids of the documents with a token in its cell.

    List ``c`` has ``counts[c]`` ids in ``data[offsets[c] : offsets[c + 1]]``; see
    :func:`build_lists`.
    """

    counts: Int32  # (K,)
    offsets: Int64  # (K + 1,)
    data: UInt8


def residual_maxsim(
    query: Float32,
    codes: Array,
    residuals: UInt8,
    doclens: Int32,
    centroids: Float32,
    weights: Float32,
    *,
    scales: UInt8 | None = None,
    precision: Literal["float32", "int8"] = "float32",
    inverse_norms: UInt8 | None = None,
) -> Float32:
    """MaxSim of one query (nq, dim) over compressed documents: float32 (n_docs,).

    "float32" is :func:`maxsim` over :func:`decompress`. "int8" is an approximation: the product
    with the centroid by its byte (:func:`byte_scores`), that with the weights by the integers of
    :func:`int8_products`, the norm by its byte.
    """
    if precision == "float32":
        vectors = decompress(codes, residuals, centroids, weights, scales=scales)
        return cast(Float32, maxsim(query, vectors, doclens))
    if inverse_norms is None:
        raise ValueError("inverse_norms: needed by precision='int8', got None")
    similarities = _int8_similarities(
        query, codes, residuals, centroids, weights, scales, inverse_norms
    )
    return sum_of_best(similarities, doclens)[0]


def _int8_similarities(
    query: Float32,
    codes: Array,
    residuals: UInt8,
    centroids: Float32,
    weights: Float32,
    scales: UInt8 | None,
    inverse_norms: UInt8,
) -> Array:
    """Of each query token with each token: float64 (nq, n)."""
    table, step = byte_scores(query, centroids)
    centroid_part = (step[:, None] * (table.astype(np.float64).T - TABLE_ZERO))[:, codes]
    scale = np.ones(len(codes)) if scales is None else decode_scales(scales)
    values = values_of(residuals, centroids.shape[1], weights)
    similarities = centroid_part + scale * int8_products(query, values, weights)
    return cast(Array, similarities * decode_inverse_norms(inverse_norms))


def contenders(
    query: Float32,
    codes: Array,
    residuals: UInt8,
    centroids: Float32,
    weights: Float32,
    *,
    slack: Float32,
    relative: float,
    inverse_norms: UInt8,
    scales: UInt8 | None = None,
) -> Array:
    """Which tokens of one document could hold exact maxima: bool (n, panels).

    Query tokens are taken 16 at a time, a panel. A token contends in it that comes within
    ``sqrt(slack**2 + (relative * best)**2)`` of the best int8 similarity of one of them; `slack` is
    (nq,).
    """
    similarities = _int8_similarities(
        query, codes, residuals, centroids, weights, scales, inverse_norms
    )
    best = similarities.max(axis=1)
    near = best[:, None] - similarities <= np.hypot(slack, relative * best)[:, None]
    return np.stack([near[i : i + 16].any(axis=0) for i in range(0, len(query), 16)], axis=1)


def contenders_maxsim(
    query: Float32,
    codes: Array,
    residuals: UInt8,
    centroids: Float32,
    weights: Float32,
    marks: Array,
    *,
    scales: UInt8 | None = None,
) -> float:
    """MaxSim of one document where each query token sees what its panel has in `marks` only."""
    vectors = decompress(codes, residuals, centroids, weights, scales=scales)
    similarities = query.astype(np.float64) @ vectors.astype(np.float64).T
    seen = np.repeat(marks.T, 16, axis=0)[: len(query)]
    return float(np.where(seen, similarities, -np.inf).max(axis=1).sum())


def centroid_scores(query: Float32, centroids: Float32) -> Float32:
    """Dot products of query (nq, dim) and centroids (K, dim): float32 (K, nq)."""
    scores = centroids.astype(np.float64) @ query.astype(np.float64).T
    return cast(Float32, scores.astype(np.float32))


def top_centroids(scores: Float32, nprobe: int) -> Int32:
    """Best centroids of each query token, from scores (K, nq): int32 (nq, nprobe), best first.

    Of equal scores the lowest centroid comes first.
    """
    best = np.argsort(-scores, axis=0, kind="stable")[:nprobe].T
    return np.ascontiguousarray(best, np.int32)


def build_lists(codes: Array, doclens: Int32, num_centroids: int) -> InvertedLists:
    """Inverted lists of a collection from codes (n,) and doclens (n_docs,).

    A list is a byte ``width`` and then, ``width`` bits each and least significant bit first, the
    gaps ``id - previous - 1`` (the id before the first is -1), the last byte filled up with zeros.
    ``width`` is the bit length of the largest gap. An empty list has no bytes.
    """
    documents = np.repeat(np.arange(len(doclens)), doclens)
    lists = [np.unique(documents[codes == cell]) for cell in range(num_centroids)]
    packed = [_pack_list(ids) for ids in lists]
    counts = np.array([len(ids) for ids in lists], np.int32)
    offsets = offsets_of(np.array([len(row) for row in packed]))
    return InvertedLists(counts, offsets, np.concatenate([*packed, np.zeros(0, np.uint8)]))


def stream_lists(
    packed: UInt8, bits: int, doclens: Int32, num_centroids: int, *, max_bytes: int = 1 << 28
) -> tuple[Int32, Int64, Iterator[UInt8]]:
    """Counts, offsets and, block by block, data of :func:`build_lists` from :func:`pack_codes`.

    A block takes lists while they have at most `max_bytes`, and at least one.
    """
    codes = unpack_codes(packed, bits, 0, int(doclens.sum()))
    counts, offsets, data = build_lists(codes, doclens, num_centroids)

    def blocks() -> Iterator[UInt8]:
        first = 0
        while first < num_centroids:
            last = first + 1
            while last < num_centroids and offsets[last + 1] - offsets[first] <= max_bytes:
                last += 1
            yield data[offsets[first] : offsets[last]]
            first = last

    return counts, offsets, blocks()


def _pack_list(ids: Array) -> UInt8:
    if len(ids) == 0:
        return np.zeros(0, np.uint8)
    gaps = np.diff(ids, prepend=-1) - 1
    width = int(gaps.max()).bit_length()
    bits = (gaps[:, None] >> np.arange(width)) & 1
    packed = np.packbits(bits.astype(np.uint8).ravel(), bitorder="little")
    return np.concatenate([np.array([width], np.uint8), packed])


def read_list(lists: InvertedLists, centroid: int) -> Int32:
    """Ascending ids of the documents with a token in the cell of ``centroid``: int32."""
    count = int(lists.counts[centroid])
    if count == 0:
        return np.zeros(0, np.int32)
    start, end = int(lists.offsets[centroid]), int(lists.offsets[centroid + 1])
    width = int(lists.data[start])
    bits = np.unpackbits(lists.data[start + 1 : end], bitorder="little")[: count * width]
    gaps = (bits.reshape(count, width).astype(np.int64) << np.arange(width)).sum(axis=1)
    return (np.cumsum(gaps + 1) - 1).astype(np.int32)


def gather_documents(lists: InvertedLists, cells: Int32, n_docs: int) -> Int32:
    """Ascending ids, each once, of the documents (of ``n_docs``) in any of the cells (m,)."""
    member = np.zeros(n_docs, bool)
    for cell in cells:
        member[read_list(lists, int(cell))] = True
    return np.flatnonzero(member).astype(np.int32)


def approximate_maxsim(
    scores: Float32,
    codes: Array,
    doclens: Int32,
    candidates: Int32,
    *,
    threshold: float | None = None,
) -> Float32:
    """MaxSim with each document token replaced by its centroid: float32 (m,).

    Parameters
    ----------
    scores : float32 (K, nq)
        From :func:`centroid_scores`.
    codes : int32 or uint16 (n,)
    doclens : int32 (n_docs,)
    candidates : int32 (m,)
        Documents to score.
    threshold : float, optional
        Leave out the tokens whose centroid scores below this with every query token. A document
        with no token left scores ``EMPTY_APPROXIMATE_SCORE`` per query token.
    """
    starts, nq = offsets_of(doclens), scores.shape[1]
    result = np.full(len(candidates), EMPTY_APPROXIMATE_SCORE * nq, np.float32)
    for row, doc in enumerate(candidates):
        tokens = scores[codes[starts[doc] : starts[doc + 1]]].astype(np.float64)
        if threshold is not None:
            tokens = tokens[tokens.max(axis=1) >= np.float32(threshold)]
        if len(tokens):
            result[row] = tokens.max(axis=0).sum()
    return result


def top_k(scores: Float32, k: int) -> tuple[Float32, Int64]:
    """Largest ``k`` of scores (n,), or all if fewer: values float32 and indices int64, best first.

    Of equal scores the lowest index comes first.
    """
    indices = np.argsort(-scores, kind="stable")[:k].astype(np.int64)
    return scores[indices], indices


def search(
    query: Float32,
    *,
    centroids: Float32,
    codes: Array,
    doclens: Int32,
    weights: Float32 | None = None,
    residuals: UInt8 | None = None,
    scales: UInt8 | None = None,
    embeddings: Array | None = None,
    k: int = 10,
    nprobe: int = 1,
    ndocs: int = 256,
    centroid_score_threshold: float | None = 0.5,
    exhaustive: bool = False,
    subset: npt.NDArray[np.bool_] | None = None,
) -> tuple[Int64, Float32]:
    """Search one query (nq, dim): PLAID's four stages, or every document if ``exhaustive``.

    Documents come as ``residuals`` with ``weights``, or as uncompressed ``embeddings``. The stages:
    candidates are the documents in the ``nprobe`` best cells of each query token; the ``ndocs``
    best by approximate score over the centroids that reach the threshold stay; of these the best
    ``ndocs // 4`` (never fewer than ``k``) by approximate score over all centroids; the exact
    MaxSim of the rest decides. Equal scores are ordered by document everywhere.

    Parameters
    ----------
    subset : bool (n_docs,), optional
        Documents that may be found; the others are taken out before the first score.

    Returns
    -------
    documents : int64 (m,), m <= k
        Best first; documents without tokens are never found.
    scores : float32 (m,)
        MaxSim over the decompressed, renormalised vectors.
    """
    allowed = doclens > 0 if subset is None else (doclens > 0) & subset
    candidates = np.flatnonzero(allowed).astype(np.int32)
    if not exhaustive:
        scores = centroid_scores(query, centroids)
        lists = build_lists(codes, doclens, len(centroids))
        found = gather_documents(lists, top_centroids(scores, nprobe).ravel(), len(doclens))
        candidates = found[allowed[found]]
        for keep, threshold in ((ndocs, centroid_score_threshold), (max(ndocs // 4, k), None)):
            rough = approximate_maxsim(scores, codes, doclens, candidates, threshold=threshold)
            candidates = np.sort(candidates[top_k(rough, keep)[1]])
    tokens = np.repeat(np.isin(np.arange(len(doclens)), candidates), doclens)
    if embeddings is not None:
        vectors = embeddings[tokens]
    elif residuals is not None and weights is not None:
        kept = None if scales is None else scales[tokens]
        vectors = decompress(codes[tokens], residuals[tokens], centroids, weights, scales=kept)
    else:
        raise ValueError("embeddings: got None without residuals and weights; pass either")
    values, order = top_k(cast(Float32, maxsim(query, vectors, doclens[candidates])), k)
    return candidates[order].astype(np.int64), values
