"""The kernels as functions, on numpy arrays or torch tensors, without copies.

Arrays go in, arrays of the same kind come out, on the same device: CUDA tensors run the kernels
that `cuda` has and are refused by the others. One file, so that the list is seen whole; most of
it is docstrings.

All arrays are C-contiguous. A wrong dtype is a TypeError; a wrong shape, a strided array or a
value out of range is a ValueError that names the argument. Floats have to be finite, which most
kernels do not check: with NaN or infinity scores and choices mean nothing. `dim` is a multiple of 8
from 8 to 1024. `nbits` is 1, 2, 3, 4 or 8, and a packed row takes ``dim * nbits // 8`` bytes.

Results are the same bits on every instruction set and for any number of threads. `reference` has
the same functions in plain numpy: they say what each of these means.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from colbert_fast import _core
from colbert_fast.kernels import cuda
from colbert_fast.kernels.pairs import columns_of

__all__ = [
    "InvertedLists",
    "accumulate",
    "approximate_maxsim",
    "assign",
    "build_lists",
    "centroid_scores",
    "compress",
    "compress_trellis",
    "decompress",
    "gather_documents",
    "inverse_norms",
    "maxsim",
    "maxsim_grad_documents",
    "maxsim_grad_query",
    "pack_codes",
    "pack_residuals",
    "pool",
    "read_list",
    "residual_maxsim",
    "stream_lists",
    "top_centroids",
    "top_k",
    "unpack_codes",
    "unpack_residuals",
]

NBITS = (1, 2, 3, 4, 8)
MAX_DIM = _core.max_dim
CODE_PADDING = 64
"""Bytes of zeros behind packed codes, which kernels may read."""

# A numpy array or a torch tensor; results are of the same kind as the first argument.
Array: TypeAlias = Any


class InvertedLists(NamedTuple):
    """For each centroid, the ascending ids of the documents that have a token there.

    List c holds ``counts[c]`` ids in the bytes ``data[offsets[c]:offsets[c + 1]]``: one byte
    `width`, then the gaps ``id - previous - 1`` (the first previous is -1) in `width` bits each,
    least significant first.
    """

    counts: NDArray[np.int32]  # (K,)
    offsets: NDArray[np.int64]  # (K + 1,)
    data: NDArray[np.uint8]


def _empty(like: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """An uninitialised array of the caller's kind. Only a caller with tensors has torch loaded."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(like, torch.Tensor):
        return torch.empty(shape, dtype=getattr(torch, dtype), device=like.device)
    return np.empty(shape, dtype)


def _check_gradient_inputs(query: Array, **others: Array) -> None:
    """Refuse what has no gradient, and what `maxsim` refuses without gradients but torch takes."""
    torch = sys.modules["torch"]
    for name, array in {"query": query, **others}.items():
        if not isinstance(array, torch.Tensor):
            kind = type(array).__name__
            raise TypeError(f"`{name}` must be a torch tensor for a gradient, got {kind}")
    if query.device.type == "cpu" and query.dtype != torch.float32:
        raise TypeError(f"`query` must be float32, got {str(query.dtype).removeprefix('torch.')}")


def _wants_gradient(array: Array) -> bool:
    return getattr(array, "requires_grad", False) and sys.modules["torch"].is_grad_enabled()


def _shape(array: Array, name: str, *ndims: int) -> tuple[int, ...]:
    shape = getattr(array, "shape", None)
    if shape is None:
        kind = type(array).__name__
        raise TypeError(f"`{name}` must be a numpy array or a torch tensor, got {kind}")
    if len(shape) not in ndims:
        wanted = " or ".join(map(str, ndims))
        raise ValueError(f"`{name}` must have {wanted} dimensions, got {tuple(shape)}")
    return tuple(shape)


def _check_nbits(nbits: int) -> None:
    if nbits not in NBITS:
        raise ValueError(f"`nbits` must be 1, 2, 3, 4 or 8, got {nbits!r}")


# -- residual ----------------------------------------------------------------------------------


def pack_residuals(buckets: Array, nbits: int) -> Array:
    """Pack buckets into bytes, in PLAID's bit order.

    Dimensions in order, each `nbits` least significant bit first, fill bytes from the top. With 3
    bits, dimension ``4 * i + s`` keeps its low two bits as the 2-bit order does, in the first
    ``dim / 4`` bytes, and its high bit at bit ``7 - (2 * s + i // (dim // 8))`` of byte ``dim // 4
    + i % (dim // 8)``.

    Parameters
    ----------
    buckets : uint8 (n, dim), each below ``2 ** nbits``
    nbits : 1, 2, 3, 4 or 8

    Returns
    -------
    uint8 (n, dim * nbits // 8)
    """
    _check_nbits(nbits)
    n, dim = _shape(buckets, "buckets", 2)
    packed = _empty(buckets, (n, dim * nbits // 8), "uint8")
    cuda.run("pack", buckets, nbits, packed)
    return packed


def unpack_residuals(packed: Array, nbits: int) -> Array:
    """The inverse of `pack_residuals`.

    Parameters
    ----------
    packed : uint8 (n, dim * nbits // 8)
    nbits : 1, 2, 3, 4 or 8

    Returns
    -------
    uint8 (n, dim)
    """
    _check_nbits(nbits)
    n, width = _shape(packed, "packed", 2)
    if width % nbits:
        raise ValueError(f"`packed` rows must be a multiple of {nbits} bytes long, got {width}")
    buckets = _empty(packed, (n, width * 8 // nbits), "uint8")
    cuda.run("unpack", packed, nbits, buckets)
    return buckets


def compress(embeddings: Array, centroids: Array, cutoffs: Array) -> tuple[Array, Array]:
    """Assign, quantise and pack in one pass (ColBERTv2, arXiv 2112.01488, section 3.3).

    A token's code is its nearest centroid by dot product (ties: the lowest), found in two levels
    among 1,024 or more (`assign` with ``exact=False``); a dimension's bucket is the number of
    cutoffs strictly below ``embedding - centroid``.

    Parameters
    ----------
    embeddings : float32, float16 or bfloat16 (n, dim)
    centroids : float32 (K, dim)
    cutoffs : float32 (2 ** nbits - 1,), ascending
        On the CPU also where the rest is on a CUDA device.

    Returns
    -------
    codes : int32 (n,)
    residuals : uint8 (n, dim * nbits // 8)
    """
    n, dim = _shape(embeddings, "embeddings", 2)
    (n_cutoffs,) = _shape(cutoffs, "cutoffs", 1)
    nbits = (n_cutoffs + 1).bit_length() - 1
    residuals = _empty(embeddings, (n, dim * nbits // 8), "uint8")
    if cuda.is_cuda(embeddings):
        codes, _ = assign(embeddings, centroids)
        cuda.run("compress", embeddings, centroids, codes, cutoffs, residuals)
    else:
        codes = _empty(embeddings, (n,), "int32")
        _core.compress(embeddings, centroids, cutoffs, codes, residuals)
    return codes, residuals


def compress_trellis(
    embeddings: Array, centroids: Array, weights: Array, nbits: int
) -> tuple[Array, Array, Array]:
    """Assign, and code residuals by a trellis and a scale of their own.

    A dimension decodes to the weight at a window of 4 bits (8 with `nbits` 8) of the packed row:
    its own `nbits` and the ones before them. Of all rows of bits the Viterbi algorithm finds the
    one whose weights, times a scale, come nearest to ``embedding - centroid``: trellis-coded
    quantisation (Marcellin and Fischer 1990) with the bit-shift trellis of QTIP (arXiv 2406.11235).
    The first path is for the residual as a unit vector, a second one for the scale of the first.

    Parameters
    ----------
    embeddings : float32, float16 or bfloat16 (n, dim)
    centroids : float32 (K, dim)
    weights : float32 (16,) by window for `nbits` 1 to 3, else (2 ** nbits,) by bucket
        Fitted to residuals of unit length. On the CPU also where the rest is on a CUDA device.
    nbits : 1, 2, 3, 4 or 8

    Returns
    -------
    codes : int32 (n,)
        As of `compress`.
    residuals : uint8 (n, dim * nbits // 8)
    scales : uint8 (n,)
        0 stands for 0, byte b for ``2 ** ((b - 192) / 32)``: 1/64 to 3.9, to 1.1 %.
    """
    _check_nbits(nbits)
    n, dim = _shape(embeddings, "embeddings", 2)
    residuals = _empty(embeddings, (n, dim * nbits // 8), "uint8")
    scales = _empty(embeddings, (n,), "uint8")
    if cuda.is_cuda(embeddings):
        codes, _ = assign(embeddings, centroids)
        cuda.run("compress_trellis", embeddings, centroids, codes, weights, residuals, scales)
    else:
        codes = _empty(embeddings, (n,), "int32")
        _core.compress_trellis(embeddings, centroids, weights, codes, residuals, scales)
    return codes, residuals, scales


def decompress(
    codes: Array,
    residuals: Array,
    centroids: Array,
    weights: Array,
    *,
    scales: Array | None = None,
) -> Array:
    """Decode to unit vectors: ``centroid + scale * weights``, brought to unit length.

    Norms below 1e-12 count as 1e-12.

    Parameters
    ----------
    codes : int32 or uint16 (n,)
    residuals : uint8 (n, dim * nbits // 8)
    centroids : float32 (K, dim)
    weights : float32 (2 ** nbits,) by bucket, or (16,) by window as of `compress_trellis`
        On the CPU also where the rest is on a CUDA device.
    scales : uint8 (n,)
        From `compress_trellis`; by default all scales are 1.

    Returns
    -------
    float32 (n, dim)
    """
    (n,) = _shape(codes, "codes", 1)
    _, dim = _shape(centroids, "centroids", 2)
    embeddings = _empty(codes, (n, dim), "float32")
    cuda.run("decompress", codes, residuals, centroids, weights, scales, embeddings)
    return embeddings


def inverse_norms(
    codes: Array,
    residuals: Array,
    centroids: Array,
    weights: Array,
    *,
    scales: Array | None = None,
) -> Array:
    """The factor that brings each token to unit length in `decompress`, as a byte.

    Byte b stands for ``2 ** ((b - 127.5) / 127.5)``: 0.5 to 2, to 0.3 %. Arguments as in
    `decompress`.

    Returns
    -------
    uint8 (n,)
    """
    (n,) = _shape(codes, "codes", 1)
    norms = _empty(codes, (n,), "uint8")
    cuda.run("inverse_norms", codes, residuals, centroids, weights, scales, norms)
    return norms


def residual_maxsim(
    query: Array,
    codes: Array,
    residuals: Array,
    doclens: Array,
    centroids: Array,
    weights: Array,
    *,
    scales: Array | None = None,
    precision: Literal["float32", "int8"] = "float32",
    inverse_norms: Array | None = None,
) -> Array:
    """MaxSim of one query with compressed documents, without writing their vectors.

    Parameters
    ----------
    query : float32 (nq, dim)
    codes, residuals, centroids, weights, scales
        As in `decompress`, the documents' tokens one after the other.
    doclens : int32 (n_docs,)
        Tokens per document.
    precision
        "float32": the same bits as ``maxsim(query, decompress(...), doclens)``. "int8": the query
        as int8 per row, weights as 7-bit levels, centroid scores and norms as bytes; about 0.03
        off for 32 query tokens, for choosing what to score exactly. On a CUDA device "float32"
        does write the vectors, and "int8" is for 1 to 4 bits.
    inverse_norms : uint8 (n,)
        From `inverse_norms`; "int8" needs it.

    Returns
    -------
    float32 (n_docs,); -inf for a document without tokens
    """
    if precision not in ("float32", "int8"):
        raise ValueError(f"`precision` must be 'float32' or 'int8', got {precision!r}")
    if precision == "int8" and inverse_norms is None:
        raise ValueError("precision='int8' needs `inverse_norms`")
    (n_docs,) = _shape(doclens, "doclens", 1)
    if cuda.is_cuda(query):
        if precision == "float32":
            vectors = decompress(codes, residuals, centroids, weights, scales=scales)
            return maxsim(query, vectors, doclens)
        scored = cuda.byte_scores(query, cuda.quantise_centroids(centroids))
        return cuda.residual_maxsim(
            query, codes, residuals, doclens, weights, scales, inverse_norms, *scored
        )
    scores = _empty(query, (n_docs,), "float32")
    norms = inverse_norms if precision == "int8" else None
    _core.residual_maxsim(
        query, codes, residuals, doclens, centroids, weights, scales, norms, scores
    )
    return scores


# -- maxsim ------------------------------------------------------------------------------------


def maxsim(
    query: Array,
    documents: Array,
    doclens: Array,
    *,
    documents_per_query: int | None = None,
    return_argmax: bool = False,
) -> Array | tuple[Array, Array]:
    """Exact MaxSim: for each query token its best dot product with a document's tokens, summed.

    Documents lie one after the other, without padding (ColBERT, arXiv 2004.12832, section 3.2).
    Where the query or the documents require gradients, all three are tensors.

    Parameters
    ----------
    query : float32 (nq, dim) or (b, nq, dim)
        On a CUDA device also float16 or bfloat16 as the documents are, with `dim` up to 128: then
        tensor cores compute the products.
    documents : float32, float16 or bfloat16 (n_tokens, dim)
    doclens : int32 (n_docs,), summing to n_tokens
    documents_per_query : int, optional
        Score query i with its own documents only, ``i * documents_per_query`` and the next ones:
        ``b * documents_per_query`` must be n_docs. Every query with every document by default.
    return_argmax
        Also return the token that each query token met. Tensors that require gradients go through
        `autograd.maxsim`, which keeps the argmax to itself: asking for both is a ValueError.

    Returns
    -------
    scores : float32 (n_docs,) or (b, n_docs); -inf for a document without tokens
        ``(b, documents_per_query)`` if that was given.
    argmax : int32 (n_docs, nq) or (b, n_docs, nq), if asked for
        Index within the document (ties: the first), -1 where it has no tokens.
    """
    single = len(_shape(query, "query", 2, 3)) == 2
    if _wants_gradient(query) or _wants_gradient(documents):
        if return_argmax:
            raise ValueError("`return_argmax` has no gradient: detach the tensors first")
        _check_gradient_inputs(query, documents=documents, doclens=doclens)
        from colbert_fast.kernels import autograd  # imports torch, which the caller has

        return autograd.maxsim(query, documents, doclens, documents_per_query=documents_per_query)
    queries = query[None] if single else query
    b, nq, _ = queries.shape
    (n_docs,) = _shape(doclens, "doclens", 1)
    columns = columns_of(b, n_docs, documents_per_query)
    scores = _empty(query, (b, columns), "float32")
    argmax: Array = _empty(query, (b, columns, nq), "int32") if return_argmax else None
    where = cuda.documents_of(query, doclens)
    cuda.run("maxsim", queries, documents, *where, scores, argmax)
    if single:
        scores = scores[0]
        argmax = argmax[0] if return_argmax else None
    return (scores, argmax) if return_argmax else scores


def maxsim_grad_query(documents: Array, doclens: Array, argmax: Array, grad: Array) -> Array:
    """Gradient of `maxsim` by the query: each token gets the document tokens that it met.

    Row q of query b is the sum over documents of `grad` times the token that `argmax` names.

    Parameters
    ----------
    documents : float32, float16 or bfloat16 (n_tokens, dim)
    doclens : int32 (n_docs,), summing to n_tokens
    argmax : int32 (b, n_docs, nq), or (b, documents_per_query, nq)
        As `maxsim` returns it.
    grad : float32 (b, n_docs), or (b, documents_per_query)
        Gradient by the scores.

    Returns
    -------
    float32 (b, nq, dim)
    """
    _, dim = _shape(documents, "documents", 2)
    b, _, nq = _shape(argmax, "argmax", 3)
    out = _empty(documents, (b, nq, dim), "float32")
    where = cuda.documents_of(documents, doclens)
    cuda.run("maxsim_grad_query", documents, *where, argmax, grad, out)
    return out


def maxsim_grad_documents(
    query: Array, doclens: Array, argmax: Array, grad: Array, *, n_tokens: int | None = None
) -> Array:
    """Gradient of `maxsim` by the documents: each token gets the query tokens that met it.

    Parameters
    ----------
    query : float32 (b, nq, dim)
    doclens : int32 (n_docs,)
    argmax, grad
        As of `maxsim_grad_query`.
    n_tokens : int, optional
        What `doclens` sum to. Without it a CUDA device is waited for.

    Returns
    -------
    float32 (n_tokens, dim), whatever the type of the documents
        Zero for tokens that nothing met.
    """
    _, _, dim = _shape(query, "query", 3)
    _shape(doclens, "doclens", 1)
    if n_tokens is None:
        n_tokens = max(int(doclens.sum()), 0)
    out = _empty(query, (n_tokens, dim), "float32")
    if cuda.is_cuda(query):
        out.zero_()  # rows that no document has, if lengths sum to less, are not written
    where = cuda.documents_of(query, doclens)
    cuda.run("maxsim_grad_documents", query, *where, argmax, grad, out)
    return out


# -- candidates --------------------------------------------------------------------------------


def centroid_scores(query: Array, centroids: Array) -> Array:
    """Dot product of every centroid with every query token.

    Parameters
    ----------
    query : float32 (nq, dim)
    centroids : float32 (K, dim)

    Returns
    -------
    float32 (K, nq): centroid-major, so that a code reads one run of memory
    """
    (nq, _), (k, _) = _shape(query, "query", 2), _shape(centroids, "centroids", 2)
    scores = _empty(query, (k, nq), "float32")
    cuda.run("centroid_scores", query, centroids, scores)
    return scores


def top_centroids(scores: Array, nprobe: int) -> Array:
    """Best centroids of each query token, in descending score (ties: the lowest).

    Parameters
    ----------
    scores : float32 (K, nq)
    nprobe : 1 to K, at most 4,096 on a CUDA device

    Returns
    -------
    int32 (nq, nprobe)
    """
    k, nq = _shape(scores, "scores", 2)
    if not 1 <= nprobe <= k:
        raise ValueError(f"`nprobe` must be from 1 to the number of centroids, {k}, got {nprobe}")
    cells = _empty(scores, (nq, nprobe), "int32")
    cuda.run("top_centroids", scores, cells)
    return cells


def pack_codes(codes: Array, bits: int) -> Array:
    """Centroid ids in `bits` bits each: code i has the bits from ``i * bits`` on.

    The stream fills bytes from the lowest bit (``numpy.packbits`` with ``bitorder="little"``), so
    that eight codes take `bits` bytes.

    Parameters
    ----------
    codes : int32 or uint16 (n,), below ``2**bits``
    bits : 1 to 31

    Returns
    -------
    uint8 (ceil(n * bits / 8) + CODE_PADDING,)
    """
    (n,) = _shape(codes, "codes", 1)
    packed = _empty(codes, (max(n * bits + 7, 0) // 8 + CODE_PADDING,), "uint8")
    _core.pack_codes(codes, bits, packed)
    return packed


def unpack_codes(packed: Array, bits: int, first: int, count: int) -> Array:
    """Codes `first` to ``first + count - 1`` of what `pack_codes` gave.

    Returns
    -------
    int32 (count,)
    """
    if count < 0:
        raise ValueError(f"`count` must not be negative, got {count}")
    codes = _empty(packed, (count,), "int32")
    _core.unpack_codes(packed, bits, first, codes)
    return codes


def build_lists(codes: Array, doclens: Array, num_centroids: int) -> InvertedLists:
    """Inverted lists of documents by centroid.

    Parameters
    ----------
    codes : int32 or uint16 (n,), below `num_centroids`
    doclens : int32 (n_docs,), summing to n
    num_centroids : K

    Returns
    -------
    InvertedLists, in numpy arrays
    """
    (n,) = _shape(codes, "codes", 1)
    bits = max(1, (num_centroids - 1).bit_length())
    builder = _core.ListBuilder(pack_codes(codes, bits), bits, doclens, num_centroids, n)
    data = np.empty(builder.offsets[-1], np.uint8)
    builder.fill(0, num_centroids, data)
    return InvertedLists(builder.counts, builder.offsets, data)


def stream_lists(
    packed: Array, bits: int, doclens: Array, num_centroids: int, *, max_bytes: int = 1 << 28
) -> tuple[NDArray[np.int32], NDArray[np.int64], Iterator[NDArray[np.uint8]]]:
    """`build_lists` for collections whose lists had better not be in memory at once.

    The codes are read once to count, and once more for each block of lists.

    Parameters
    ----------
    packed : uint8
        From `pack_codes`; may be a memory map. Must not change until the last block is there.
    bits
        What each code takes.
    doclens : int32 (n_docs,)
    num_centroids : K
    max_bytes
        Of a block; a list that is longer is a block of its own. Besides it takes up to 24 bytes per
        centroid, those of `counts` and `offsets`, and 8 per document, whatever the number of
        tokens.

    Returns
    -------
    counts : int32 (K,)
    offsets : int64 (K + 1,)
    blocks
        uint8 arrays that make ``InvertedLists.data``, one after the other.
    """
    if max_bytes < 1:
        raise ValueError(f"`max_bytes` must be at least 1, got {max_bytes}")
    builder = _core.ListBuilder(packed, bits, doclens, num_centroids)
    offsets = builder.offsets
    return builder.counts, offsets, _blocks_of_lists(builder, offsets, max_bytes)


def _blocks_of_lists(
    builder: _core.ListBuilder, offsets: NDArray[np.int64], max_bytes: int
) -> Iterator[NDArray[np.uint8]]:
    first = 0
    while first + 1 < len(offsets):
        end = np.searchsorted(offsets, offsets[first] + max_bytes, side="right")
        last = max(first + 1, int(end) - 1)
        block = np.empty(offsets[last] - offsets[first], np.uint8)
        builder.fill(first, last, block)
        yield block
        first = last


def read_list(lists: InvertedLists, centroid: int) -> NDArray[np.int32]:
    """The ascending document ids of one list.

    Raises
    ------
    ValueError
        The list's bytes do not fit what they claim.
    """
    cell = np.array([centroid], np.int32)
    return _core.read_lists(*lists, cell, np.iinfo(np.int32).max)


def gather_documents(lists: InvertedLists, cells: Array, n_docs: int) -> NDArray[np.int32]:
    """The documents of several lists, each once, ascending.

    Parameters
    ----------
    lists : InvertedLists
    cells : int32 (m,)
        Centroids, such as ``top_centroids(...).ravel()``.
    n_docs
        Documents of the collection; an id that is not below it is a ValueError.

    Returns
    -------
    int32 (any,)
    """
    return _core.read_lists(*lists, cells, n_docs)


def approximate_maxsim(
    scores: Array,
    codes: Array,
    doclens: Array,
    candidates: Array,
    *,
    threshold: float | None = None,
) -> Array:
    """MaxSim of candidates with each token replaced by its centroid.

    This is PLAID's centroid interaction (arXiv 2205.09707, section 4.3).

    Parameters
    ----------
    scores : float32 (K, nq)
        From `centroid_scores`.
    codes : int32 or uint16 (n,)
    doclens : int32 (n_docs,), summing to n
    candidates : int32 (m,)
        Documents to score.
    threshold
        Count only centroids whose best score over the query is at least this (section 4.4).

    Returns
    -------
    float32 (m,); a document with nothing left counts -9999 for each query token
    """
    (m,) = _shape(candidates, "candidates", 1)
    out = _empty(scores, (m,), "float32")
    _core.approximate_maxsim(scores, codes, doclens, candidates, threshold, out)
    return out


def top_k(scores: Array, k: int) -> tuple[Array, Array]:
    """The `k` highest scores, in descending order (ties: the lowest index first; NaN as -inf).

    Parameters
    ----------
    scores : float32 (n,)
    k : at least 1, at most 4,096 on a CUDA device

    Returns
    -------
    values : float32 (min(k, n),)
    indices : int64 (min(k, n),)
    """
    (n,) = _shape(scores, "scores", 1)
    if k < 1:
        raise ValueError(f"`k` must be at least 1, got {k}")
    values, indices = _empty(scores, (min(k, n),), "float32"), _empty(scores, (min(k, n),), "int64")
    cuda.run("top_k", scores, values, indices)
    return values, indices


# -- kmeans ------------------------------------------------------------------------------------


def assign(points: Array, centroids: Array, *, exact: bool = True) -> tuple[Array, Array]:
    """Nearest centroid of each point by dot product (ties: the lowest). Never holds n x K scores.

    Parameters
    ----------
    points : float32, float16 or bfloat16 (n, dim)
    centroids : float32 (K, dim)
    exact
        False looks, among 1,024 centroids or more, only into groups near the point, as `compress`
        and k-means do: the centroids are put into about ``6 * sqrt(K)`` groups by k-means of their
        own, and a point looks into those whose head (unit mean) has a cosine at most 0.28 below
        that of its best head. Made for unit vectors: of token vectors 99 % get their nearest
        centroid, and the mean product falls by less than 0.001. The groups of the centroids last
        given are kept for the next call. A CUDA device always looks at all.

    Returns
    -------
    codes : int32 (n,)
    best : float32 (n,)
        The dot product with that centroid.
    """
    n, _ = _shape(points, "points", 2)
    codes, best = _empty(points, (n,), "int32"), _empty(points, (n,), "float32")
    how = cuda.narrow_centroids(centroids) if cuda.is_cuda(points) else (exact,)
    cuda.run("assign", points, centroids, codes, best, *how)
    return codes, best


def accumulate(points: Array, codes: Array, num_centroids: int) -> tuple[Array, Array]:
    """Sum of each cluster's points, in point order: the same bits for any number of threads.

    Parameters
    ----------
    points : float32, float16 or bfloat16 (n, dim)
    codes : int32 (n,), below `num_centroids`
    num_centroids : K

    Returns
    -------
    sums : float32 (K, dim)
    counts : int64 (K,)
    """
    _, dim = _shape(points, "points", 2)
    sums = _empty(points, (num_centroids, dim), "float32")
    if cuda.is_cuda(points):
        order, first = cuda.sort_by_code(codes, num_centroids)
        cuda.run("accumulate", points, order, first, sums)
        return sums, first[1:] - first[:-1]
    counts = _empty(points, (num_centroids,), "int64")
    _core.accumulate(points, codes, sums, counts)
    return sums, counts


# -- pooling -----------------------------------------------------------------------------------


def pool(
    embeddings: Array,
    doclens: Array,
    factor: int,
    *,
    protected: int = 1,
    return_clusters: bool = False,
) -> tuple[Array, ...]:
    """Merge the rows of each document into about `1 / factor` of them, many documents at once.

    Ward clustering on cosine distances (arXiv 2409.14683, section 2), greedily: the two clusters
    least apart become one until ``(doclen - protected) // factor`` are left, at least one. Merges
    at the same distance as the last one are made too, as in scipy's ``fcluster``.

    Parameters
    ----------
    embeddings : float32, float16 or bfloat16 (n, dim), unit rows; any dim
    doclens : int32 (n_docs,), summing to n
    factor : int
        1 merges nothing.
    protected : int
        Leading rows of each document that are kept as they are.
    return_clusters : bool
        Also return which row went where.

    Returns
    -------
    embeddings : float32 (m, dim)
        Of each document the protected rows, then the means of the clusters in the order of their
        first rows. Means are not renormalised.
    doclens : int32 (n_docs,), summing to m
    clusters : int32 (n,), if asked for
        The pooled row that each row is part of, counted within its document.
    """
    for name, value in (("factor", factor), ("protected", protected)):
        if not isinstance(value, (int, np.integer)):
            raise TypeError(f"`{name}` must be an int, got {value!r}")
    n, dim = _shape(embeddings, "embeddings", 2)
    (n_docs,) = _shape(doclens, "doclens", 1)
    m = _core.pooled_rows(doclens, n, factor, protected)
    pooled = _empty(embeddings, (m, dim), "float32")
    pooled_doclens = _empty(embeddings, (n_docs,), "int32")
    clusters = _empty(embeddings, (n,), "int32") if return_clusters else None
    m = _core.pool(embeddings, doclens, factor, protected, pooled, pooled_doclens, clusters)
    found = (pooled[:m], pooled_doclens)
    return found if clusters is None else (*found, clusters)
