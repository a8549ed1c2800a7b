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

from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]

EMPTY_APPROXIMATE_SCORE = -9999.0
"""Score of a query token in :func:`approximate_maxsim` with no document token to meet (PLAID)."""

TABLE_ZERO = 51
"""Byte that stands for a score of 0 in :func:`byte_scores`."""

SMALLEST_NORM = 1e-12
"""Norms are clamped here before the division, so that a zero vector stays zero."""


class InvertedLists(NamedTuple):
    """For each centroid the ascending ids of the documents with a token in its cell.

    List ``c`` has ``counts[c]`` ids in ``data[offsets[c] : offsets[c + 1]]``; see
    :func:`build_lists`.
    """

    counts: Int32  # (K,)
    offsets: Int64  # (K + 1,)
    data: UInt8


def _bit_positions(dim: int, nbits: int) -> Int64:
    """Where the packed row has each bit of each dimension: (dim, nbits), low bit first.

    Position ``p`` is bit ``7 - p % 8`` of byte ``p // 8``, as in :func:`numpy.packbits`. With 1, 2,
    4 and 8 bits the dimensions follow one another, least significant bit first: the order of PLAID
    indexes. Three bits are the 2-bit row of the low bits and then a plane of high bits, in which
    dimensions half a row apart are neighbours.
    """
    d = np.arange(dim)
    if nbits != 3:
        return (d[:, None] * nbits + np.arange(nbits)).astype(np.int64)
    i, s, half = d // 4, d % 4, dim // 8
    high = 8 * (dim // 4 + i % half) + 2 * s + i // half
    return np.stack([2 * d, 2 * d + 1, high], axis=1).astype(np.int64)


def pack_residuals(buckets: UInt8, nbits: int) -> UInt8:
    """Pack buckets (n, dim), each below ``2**nbits``, into rows of ``dim * nbits // 8`` bytes."""
    n, dim = buckets.shape
    bits = np.zeros((n, dim * nbits), np.uint8)
    values = buckets[:, :, None] >> np.arange(nbits, dtype=np.uint8)
    bits[:, _bit_positions(dim, nbits)] = values & 1
    return np.packbits(bits, axis=1)


def unpack_residuals(packed: UInt8, nbits: int) -> UInt8:
    """Inverse of :func:`pack_residuals`: rows of bytes (n, packed_dim) to buckets (n, dim)."""
    dim = packed.shape[1] * 8 // nbits
    bits = np.unpackbits(packed, axis=1)[:, _bit_positions(dim, nbits)]
    values = np.bitwise_or.reduce(bits << np.arange(nbits, dtype=np.uint8), axis=2)
    return np.ascontiguousarray(values, np.uint8)


def compress(embeddings: Array, centroids: Float32, cutoffs: Float32) -> tuple[Int32, UInt8]:
    """Code and packed residual of each vector.

    Parameters
    ----------
    embeddings : (n, dim)
    centroids : float32 (K, dim)
    cutoffs : float32 (2**nbits - 1,), ascending

    Returns
    -------
    codes : int32 (n,)
        The centroid with the largest dot product, the lowest of equal ones.
    residuals : uint8 (n, dim * nbits // 8)
        Per dimension the number of cutoffs strictly below ``e - c``, subtracted in float32.
    """
    nbits = len(cutoffs).bit_length()
    codes, _ = assign(embeddings, centroids)
    residual = embeddings.astype(np.float32) - centroids[codes]
    buckets = (residual[:, :, None] > cutoffs).sum(axis=2)
    return codes, pack_residuals(buckets.astype(np.uint8), nbits)


def windows(residuals: UInt8, nbits: int) -> Array:
    """What each dimension of packed rows is looked up by: int64 (n, dim), below 16 (256).

    With 1, 2, 4 and 8 bits the last max(4, nbits) bits of the row up to the dimension's own, zeros
    before its start. With 3 bits the last 3 bits of the 2-bit row of the low bits, and the high bit
    above them.
    """
    dim = residuals.shape[1] * 8 // nbits
    low, width = (2, 3) if nbits == 3 else (nbits, max(4, nbits))
    bits = np.unpackbits(residuals, axis=1).astype(np.int64)
    stream = np.pad(bits[:, : dim * low], ((0, 0), (width, 0)))
    ends = width + low * (np.arange(dim) + 1)
    found = sum(stream[:, ends - 1 - j] << j for j in range(width))
    if nbits == 3:
        found = found | bits[:, _bit_positions(dim, nbits)[:, 2]] << 3
    return cast(Array, found)


def _values(residuals: UInt8, dim: int, weights: Float32) -> Array:
    """Weights that packed rows decode to, by bucket or by window: float64 (n, dim)."""
    nbits = residuals.shape[1] * 8 // dim
    by_bucket = len(weights) == 2**nbits
    index = unpack_residuals(residuals, nbits) if by_bucket else windows(residuals, nbits)
    return cast(Array, weights.astype(np.float64)[index])


def compress_trellis(
    embeddings: Array, centroids: Float32, weights: Float32, nbits: int
) -> tuple[Int32, UInt8, UInt8]:
    """Code, packed residual and scale of each vector.

    The row of bits, of all there are, whose weights are nearest to the residual ``e - c`` divided
    by a scale: first by its length, then by the scale ``<r, w> / <w, w>`` that suits the weights
    found. Among equally near rows any may come; a kernel's row must be as near.

    Returns
    -------
    codes : int32 (n,)
        As of :func:`compress`.
    residuals : uint8 (n, dim * nbits // 8)
    scales : uint8 (n,)
        Bytes as of :func:`decode_scales`; the nearest in the logarithm to the last scale.
    """
    codes, _ = assign(embeddings, centroids)
    rows, scales = [], []
    for residual in embeddings.astype(np.float64) - centroids[codes]:
        scale = float(np.linalg.norm(residual))
        for _ in range(2):
            row = _nearest_row(residual / scale if scale > 0 else residual * 0, weights, nbits)
            w = _values(row, len(residual), weights)[0]
            scale = max(float(residual @ w), 0.0) / float(w @ w) if w.any() else 0.0
        rows.append(row)
        scales.append(scale)
    with np.errstate(divide="ignore"):
        level = np.rint(192 + 32 * np.log2(np.array(scales)))
    return codes, np.concatenate(rows), np.clip(level, 0, 255).astype(np.uint8)


def _nearest_row(target: Array, weights: Float32, nbits: int) -> UInt8:
    """The packed row (1, width) whose weights are nearest to target (dim,), by Viterbi's algorithm.

    A state is the tuple of the last buckets that still matter; each keeps its best history.
    """
    dim, remembered = len(target), {1: 3, 2: 1, 3: 1}.get(nbits, 0)
    best = {(0,) * remembered: (0.0, np.zeros(0, np.uint8))}
    for d in range(dim):
        reached: dict[tuple[int, ...], tuple[float, UInt8]] = {}
        for state, (cost, history) in best.items():
            for bucket in range(2**nbits):
                # A row of 8 dimensions that ends in this window, to look its weight up.
                tail = np.zeros((1, 8), np.uint8)
                tail[0, : remembered + 1] = (*state, bucket)
                weight = _values(pack_residuals(tail, nbits), 8, weights)[0, remembered]
                entry = (cost + (target[d] - weight) ** 2, np.append(history, np.uint8(bucket)))
                after = (*state, bucket)[1:]
                if after not in reached or entry[0] < reached[after][0]:
                    reached[after] = entry
        best = reached
    history = min(best.values(), key=lambda entry: entry[0])[1]
    return pack_residuals(history[None], nbits)


def decode_scales(scales: UInt8) -> Array:
    """Numbers that the bytes stand for: 0, else ``2**((b - 192) / 32)``, float64 (n,)."""
    return np.where(scales == 0, 0.0, np.exp2((scales.astype(np.float64) - 192) / 32))


def _reconstruct(
    codes: Array, residuals: UInt8, centroids: Float32, weights: Float32, scales: UInt8 | None
) -> Array:
    """Centroid plus residual, float64 (n, dim), not normalised."""
    values = _values(residuals, centroids.shape[1], weights)
    scale = np.ones(len(codes)) if scales is None else decode_scales(scales)
    return cast(Array, centroids[codes].astype(np.float64) + scale[:, None] * values)


def decompress(
    codes: Array,
    residuals: UInt8,
    centroids: Float32,
    weights: Float32,
    *,
    scales: UInt8 | None = None,
) -> Float32:
    """Centroid plus scale times weights, brought to unit length: float32 (n, dim).

    `weights` are 2**nbits, by bucket, or with 1 to 3 bits 16, by :func:`windows`.
    """
    vectors = _reconstruct(codes, residuals, centroids, weights, scales)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return cast(Float32, (vectors / np.maximum(norms, SMALLEST_NORM)).astype(np.float32))


def inverse_norms(
    codes: Array,
    residuals: UInt8,
    centroids: Float32,
    weights: Float32,
    *,
    scales: UInt8 | None = None,
) -> UInt8:
    """One over the length of each vector before renormalisation, as a byte (n,).

    Byte ``b`` stands for ``2**((b - 127.5) / 127.5)``: 0.5 to 2 in steps of 0.55%. The nearest in
    the logarithm is taken.
    """
    norms = np.linalg.norm(_reconstruct(codes, residuals, centroids, weights, scales), axis=1)
    level = 127.5 - 127.5 * np.log2(np.maximum(norms, SMALLEST_NORM))
    return cast(UInt8, np.clip(np.rint(level), 0, 255).astype(np.uint8))


def decode_inverse_norms(inverse_norms: UInt8) -> Array:
    """Numbers that the bytes of :func:`inverse_norms` stand for: float64 (n,)."""
    return np.exp2((inverse_norms.astype(np.float64) - 127.5) / 127.5)


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
    :func:`_int8_products`, the norm by its byte.
    """
    if precision == "float32":
        vectors = decompress(codes, residuals, centroids, weights, scales=scales)
        return cast(Float32, maxsim(query, vectors, doclens))
    if inverse_norms is None:
        raise ValueError("inverse_norms: needed by precision='int8', got None")
    table, step = byte_scores(query, centroids)
    centroid_part = (step[:, None] * (table.astype(np.float64).T - TABLE_ZERO))[:, codes]
    scale = np.ones(len(codes)) if scales is None else decode_scales(scales)
    values = _values(residuals, centroids.shape[1], weights)
    similarities = centroid_part + scale * _int8_products(query, values, weights)
    return _sum_of_best(similarities * decode_inverse_norms(inverse_norms), doclens)[0]


def _int8_rows(query: Float32) -> tuple[Int64, Float32]:
    """Rows as int8 and their unit, ``q ~ unit * i``: int64 (nq, dim) and float32 (nq,)."""
    unit = np.abs(query).max(axis=1) / np.float32(127)
    rows = np.rint(query / np.where(unit > 0, unit, 1)[:, None]).astype(np.int64)
    return rows, unit


def _int8_products(query: Float32, values: Array, weights: Float32) -> Array:
    """Products of query rows and values by way of 8-bit integers, float64 (nq, n).

    Values become 7-bit levels between the least and the greatest weight, ``w ~ low + step * u``
    with u in 0..127, and query rows int8. Levels, integers and units come from float32 arithmetic,
    rounded half to even; so does the whole number ``low / step * sum(i)`` that stands for the zero
    point.
    """
    rows, unit = _int8_rows(query)
    low = weights.min()
    step = (weights.max() - low) / np.float32(127)
    if step == 0:
        return np.zeros((len(query), len(values)))
    levels = np.rint((values.astype(np.float32) - low) / step).astype(np.int64)
    zero = np.rint(low / step * rows.sum(axis=1).astype(np.float32)).astype(np.int64)
    products = rows @ levels.T + zero[:, None]
    return cast(Array, (unit * step).astype(np.float64)[:, None] * products)


def byte_scores(query: Float32, centroids: Float32) -> tuple[UInt8, Array]:
    """Centroid scores as bytes: uint8 (K, nq), and the step of each query token, float64 (nq,).

    A byte b stands for ``step * (b - 51)``; 255 is the largest score that the lengths of the query
    token and of the longest centroid allow. The product is that of int8 query rows and of centroids
    as integers -63..63, each by its largest magnitude.
    """
    rows, unit = _int8_rows(query)
    scale = np.abs(centroids).max(axis=1) / np.float32(63)
    levels = np.rint(centroids / np.where(scale > 0, scale, 1)[:, None]).astype(np.int64)
    longest = np.linalg.norm(centroids.astype(np.float64), axis=1).max()
    step = np.linalg.norm(query.astype(np.float64), axis=1) * longest / (255 - TABLE_ZERO)
    scores = (levels @ rows.T) * np.outer(scale, unit).astype(np.float64)
    bytes_ = np.rint(scores / np.where(step > 0, step, 1) + TABLE_ZERO)
    return np.clip(bytes_, 0, 255).astype(np.uint8), step


def _offsets(doclens: Array) -> Int64:
    """First token of each document, and the end: int64 (n_docs + 1,)."""
    return np.concatenate([[0], np.cumsum(doclens, dtype=np.int64)]).astype(np.int64)


def _sum_of_best(similarities: Array, doclens: Array) -> tuple[Float32, Int32]:
    """MaxSim from similarities (nq, n): scores (n_docs,) and argmax (n_docs, nq)."""
    starts = _offsets(doclens)
    n_docs, nq = len(doclens), len(similarities)
    scores = np.full(n_docs, -np.inf, np.float32)
    best = np.full((n_docs, nq), -1, np.int32)
    for doc in np.flatnonzero(doclens):
        block = similarities[:, starts[doc] : starts[doc + 1]]
        scores[doc] = block.max(axis=1).sum()
        best[doc] = block.argmax(axis=1)
    return scores, best


def maxsim(
    query: Float32, documents: Array, doclens: Int32, *, return_argmax: bool = False
) -> Float32 | tuple[Float32, Int32]:
    """Sum over query tokens of the best dot product within each document.

    Parameters
    ----------
    query : float32 (nq, dim) or (b, nq, dim)
    documents : float32, float16 or bfloat16 (n, dim)
    doclens : int32 (n_docs,)
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
    results = [_sum_of_best(one @ documents.T, doclens) for one in batch]
    shape = (*query.shape[:-2], len(doclens))
    scores = np.array([r[0] for r in results], np.float32).reshape(shape)
    best = np.array([r[1] for r in results], np.int32).reshape(*shape, query.shape[-2])
    return (scores, best) if return_argmax else scores


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
    offsets = _offsets(np.array([len(row) for row in packed]))
    return InvertedLists(counts, offsets, np.concatenate([*packed, np.zeros(0, np.uint8)]))


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
    starts, nq = _offsets(doclens), scores.shape[1]
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


def assign(points: Array, centroids: Float32) -> tuple[Int32, Float32]:
    """Centroid (K, dim) with the largest dot product with each point (n, dim), and that product.

    Of equal products the lowest centroid wins. Returns codes int32 (n,) and best float32 (n,).
    """
    similarities = points.astype(np.float64) @ centroids.astype(np.float64).T
    return similarities.argmax(axis=1).astype(np.int32), similarities.max(axis=1).astype(np.float32)


def accumulate(points: Array, codes: Int32, num_centroids: int) -> tuple[Float32, Int64]:
    """Sum (K, dim) float32 and number (K,) int64 of the points (n, dim) of each cluster."""
    sums = np.zeros((num_centroids, points.shape[1]))
    np.add.at(sums, codes, points.astype(np.float64))
    return sums.astype(np.float32), np.bincount(codes, minlength=num_centroids).astype(np.int64)


def pool(
    embeddings: Array, doclens: Int32, factor: int, *, protected: int = 1
) -> tuple[Float32, Int32]:
    """Ward clustering of each document's rows (n, dim), all but the first ``protected``.

    Returns the protected rows and the means of the clusters, in the order of their first rows:
    float32 (m, dim), and doclens int32 (n_docs,).
    """
    pooled = []
    for rows in np.split(embeddings.astype(np.float64), _offsets(doclens)[1:-1]):
        free = rows[protected:]
        groups = _ward(free, max(len(free) // factor, 1))
        means = [free[group].mean(axis=0) for group in groups]
        pooled.append(np.array([*rows[:protected], *means]).reshape(-1, rows.shape[1]))
    lengths = np.array([len(rows) for rows in pooled], np.int32)
    return np.concatenate(pooled).astype(np.float32), lengths


def _ward(rows: Array, clusters: int) -> list[list[int]]:
    """At most ``clusters`` groups of rows; merges as near as the last one are made too."""
    groups = [[row] for row in range(len(rows))]
    squares = np.maximum(1 - rows @ rows.T, 0) ** 2
    np.fill_diagonal(squares, np.inf)
    last = -np.inf
    while len(groups) > 1 and (len(groups) > clusters or squares.min() <= last):
        i, j = np.unravel_index(squares.argmin(), squares.shape)  # i < j
        last, sizes = squares[i, j], np.array([len(group) for group in groups])
        merged = (sizes[i] + sizes) * squares[i] + (sizes[j] + sizes) * squares[j] - sizes * last
        squares[i] = squares[:, i] = merged / (sizes[i] + sizes[j] + sizes)
        squares[i, i] = np.inf
        squares = np.delete(np.delete(squares, j, axis=0), j, axis=1)
        groups[i] = sorted(groups[i] + groups.pop(j))
    return groups


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
