"""What the kernel tests share: sizes, seeded inputs, switches for instruction sets and threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest

from colbert_fast import _core
from colbert_fast.compress.trellis import fit_trellis
from colbert_fast.kernels import backend, ops, reference

LANES = (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129)
"""Sizes on either side of every register width."""

DIMS = (8, 16, 48, 64, 96, 128, 136, 768)
NBITS = (1, 2, 3, 4, 8)
DOCLENS = np.array([0, *LANES, 1, 0, 0, 5, 0], np.int32)
"""Documents of every awkward length, with empty ones at the start, inside and at the end."""

PAIRS = [(size, DIMS[i % len(DIMS)]) for i, size in enumerate(LANES)]
"""Every lane size once, every dimension twice: instead of the full product."""


every_isa = pytest.mark.usefixtures("isa")
any_threads = pytest.mark.usefixtures("threads")


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Force an instruction set, and go back to the one before."""
    before = str(backend.backend_info()["isa"])
    _core.set_isa(name)
    try:
        yield
    finally:
        _core.set_isa(before)


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Set the number of threads, and go back to the one before."""
    before = backend.get_num_threads()
    backend.set_num_threads(count)
    try:
        yield
    finally:
        backend.set_num_threads(before)


def empty_filled_with(byte: int, empty: Callable[..., Any] = np.empty) -> Callable[..., Any]:
    """``np.empty`` with this byte in place of whatever the memory held."""

    def fill(*args: Any, **kwargs: Any) -> Any:
        array = empty(*args, **kwargs)
        array.reshape(-1).view(np.uint8)[:] = byte
        return array

    return fill


def same_bits(left: Any, right: Any) -> bool:
    """Whether two results (arrays, tensors, tuples of them) agree in shape, type and every bit."""
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(same_bits, left, right))
    left, right = np.asarray(left), np.asarray(right)
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    return left.tobytes() == right.tobytes()


def unit_vectors(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random float32 vectors of unit length."""
    vectors = rng.standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def uniform_codec(nbits: int, spread: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Weights (2**nbits,) evenly over [-spread, spread], and the cutoffs halfway between them."""
    weights = np.linspace(-spread, spread, 2**nbits, dtype=np.float32)
    return weights, (weights[1:] + weights[:-1]) / 2


class Collection(NamedTuple):
    """A compressed collection and a query to it; shapes as in ``reference.py``."""

    query: np.ndarray
    embeddings: np.ndarray
    doclens: np.ndarray
    centroids: np.ndarray
    cutoffs: np.ndarray
    weights: np.ndarray
    codes: np.ndarray
    residuals: np.ndarray
    inverse_norms: np.ndarray | None
    scales: np.ndarray | None = None


def make_collection(
    rng: np.random.Generator,
    *,
    nq: int = 5,
    dim: int = 16,
    nbits: int = 2,
    num_centroids: int = 33,
    doclens: Sequence[int] | np.ndarray = DOCLENS,
) -> Collection:
    """Unit vectors scattered round the centroids, compressed by the reference."""
    doclens = np.asarray(doclens, np.int32)
    centroids = unit_vectors(rng, num_centroids, dim)
    home = centroids[rng.integers(num_centroids, size=int(doclens.sum()))]
    embeddings = home + unit_vectors(rng, len(home), dim) * np.float32(0.5)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True).astype(np.float32)
    weights, cutoffs = uniform_codec(nbits)
    codes, residuals = reference.compress(embeddings, centroids, cutoffs)
    norms = reference.inverse_norms(codes, residuals, centroids, weights)
    query = unit_vectors(rng, nq, dim)
    return Collection(
        query, embeddings, doclens, centroids, cutoffs, weights, codes, residuals, norms
    )


def make_trellis_collection(
    rng: np.random.Generator, *, nbits: int = 2, **options: Any
) -> Collection:
    """The same vectors coded by a trellis (with 4 and 8 bits by buckets) and a scale each.

    Compressed by the kernel: the reference takes a second for what it does in a microsecond.
    """
    data = make_collection(rng, nbits=nbits, **options)
    residuals = data.embeddings - data.centroids[data.codes]
    weights = fit_trellis(residuals, nbits)
    codes, rows, scales = ops.compress_trellis(data.embeddings, data.centroids, weights, nbits)
    norms = reference.inverse_norms(codes, rows, data.centroids, weights, scales=scales)
    return data._replace(
        weights=weights, codes=codes, residuals=rows, inverse_norms=norms, scales=scales
    )


def noncontiguous(array: np.ndarray) -> np.ndarray:
    """The same values, every second element of a wider array."""
    wide = np.repeat(array, 2, axis=-1)
    return wide[..., ::2]


def misaligned(array: np.ndarray) -> np.ndarray:
    """The same values, contiguous, starting one byte past an aligned address."""
    buffer = np.zeros(array.nbytes + 64, np.uint8)
    start = (1 - buffer.ctypes.data) % 64
    view = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view
