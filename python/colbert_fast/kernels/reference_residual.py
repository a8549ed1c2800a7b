"""The specification of the residual codec; part of :mod:`colbert_fast.kernels.reference`."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt

from colbert_fast.kernels.reference_kmeans import assign

__all__ = [
    "TABLE_ZERO",
    "byte_scores",
    "compress",
    "compress_trellis",
    "decode_inverse_norms",
    "decode_scales",
    "decompress",
    "int8_products",
    "inverse_norms",
    "pack_codes",
    "pack_residuals",
    "unpack_codes",
    "unpack_residuals",
    "values_of",
    "windows",
]

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]

TABLE_ZERO = 127
"""Byte that stands for a score of 0 in :func:`byte_scores`."""

CODE_PADDING = 64
"""Bytes of zeros behind packed codes."""

SMALLEST_NORM = 1e-12
"""Norms are clamped here before the division, so that a zero vector stays zero."""


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
        From :func:`assign` with ``exact=False``.
    residuals : uint8 (n, dim * nbits // 8)
        Per dimension the number of cutoffs strictly below ``e - c``, subtracted in float32.
    """
    nbits = len(cutoffs).bit_length()
    codes, _ = assign(embeddings, centroids, exact=False)
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


def values_of(residuals: UInt8, dim: int, weights: Float32) -> Array:
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
    codes, _ = assign(embeddings, centroids, exact=False)
    rows, scales = [], []
    for residual in embeddings.astype(np.float64) - centroids[codes]:
        scale = float(np.linalg.norm(residual))
        for _ in range(2):
            row = _nearest_row(residual / scale if scale > 0 else residual * 0, weights, nbits)
            w = values_of(row, len(residual), weights)[0]
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
                weight = values_of(pack_residuals(tail, nbits), 8, weights)[0, remembered]
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
    values = values_of(residuals, centroids.shape[1], weights)
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


def _int8_rows(query: Float32) -> tuple[Int64, Float32]:
    """Rows as int8 and their unit, ``q ~ unit * i``: int64 (nq, dim) and float32 (nq,)."""
    unit = np.abs(query).max(axis=1) / np.float32(127)
    rows = np.rint(query / np.where(unit > 0, unit, 1)[:, None]).astype(np.int64)
    return rows, unit


def int8_products(query: Float32, values: Array, weights: Float32) -> Array:
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

    A byte b stands for ``step * (b - 127)``; 125 steps are the largest score that the lengths of
    the query token and of the longest centroid allow. The product is that of int8 query rows and
    of centroids as integers -63..63, each by its largest magnitude.
    """
    rows, unit = _int8_rows(query)
    scale = np.abs(centroids).max(axis=1) / np.float32(63)
    levels = np.rint(centroids / np.where(scale > 0, scale, 1)[:, None]).astype(np.int64)
    longest = np.linalg.norm(centroids.astype(np.float64), axis=1).max()
    step = np.linalg.norm(query.astype(np.float64), axis=1) * (longest or 1) / (TABLE_ZERO - 2)
    scores = (levels @ rows.T) * np.outer(scale, unit).astype(np.float64)
    bytes_ = np.rint(scores / np.where(step > 0, step, 1) + TABLE_ZERO)
    return np.clip(bytes_, 0, 255).astype(np.uint8), step


def pack_codes(codes: Array, bits: int) -> UInt8:
    """Codes (n,) below ``2**bits`` as a stream of bits, and `CODE_PADDING` bytes of zeros."""
    stream = codes[:, None].astype(np.int64) >> np.arange(bits) & 1
    packed = np.packbits(stream.astype(np.uint8).ravel(), bitorder="little")
    return np.concatenate([packed, np.zeros(CODE_PADDING, np.uint8)])


def unpack_codes(packed: UInt8, bits: int, first: int, count: int) -> Int32:
    """Codes `first` to ``first + count - 1`` of :func:`pack_codes`, int32 (count,)."""
    stream = np.unpackbits(packed, bitorder="little")[first * bits : (first + count) * bits]
    codes = stream.reshape(count, bits).astype(np.int64) << np.arange(bits)
    return cast(Int32, codes.sum(axis=1).astype(np.int32))
