"""Plain torch and numpy versions of what the library does, and common inputs.

The baselines are what a careful user would write, each step the fastest of the ways tried: tables
made beforehand, documents of equal length so that no padding is needed (the kernels are told
lengths and make nothing of it), and blocks of documents small enough to stay in the cache. Scoring
compressed documents is also there as users write it first: all documents at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import threadpoolctl
import torch

import colbert_fast
from colbert_fast.compress.trellis import fit_trellis
from colbert_fast.kernels import ops, reference

DIM, NBITS, QUERY_TOKENS, DOCUMENT_TOKENS = 128, 2, 32, 70
BLOCK = 32  # documents that the baselines score at a time
ASSIGN_BLOCK = 512  # points that they assign at a time


class Inputs(NamedTuple):
    """A compressed collection of documents of ``DOCUMENT_TOKENS`` tokens, and a query."""

    query: np.ndarray  # float32 (QUERY_TOKENS, DIM)
    documents: np.ndarray  # float32 (n, DIM)
    doclens: np.ndarray  # int32 (n_docs,)
    centroids: np.ndarray  # float32 (K, DIM)
    cutoffs: np.ndarray  # float32 (3,)
    weights: np.ndarray  # float32 (4,)
    codes: np.ndarray  # int32 (n,)
    residuals: np.ndarray  # uint8 (n, DIM / 4)
    inverse_norms: np.ndarray  # uint8 (n,)
    trellis: np.ndarray  # float32 (16,), weights by window


def clustered(rng: np.random.Generator, centres: np.ndarray, count: int) -> np.ndarray:
    """Unit vectors (count, dim) at a cosine of about 0.8 to their centres, as token vectors are."""
    points = rng.standard_normal((count, centres.shape[1]), np.float32)
    points *= np.float32(0.75 / np.sqrt(centres.shape[1]))
    points += centres[rng.integers(len(centres), size=count)]
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points


def make_inputs(n_docs: int, num_centroids: int) -> Inputs:
    """Seeded inputs; compressed by the library, decoded alike by everyone."""
    rng = np.random.default_rng(2112)
    centroids = rng.standard_normal((num_centroids, DIM), np.float32)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    documents = clustered(rng, centroids, n_docs * DOCUMENT_TOKENS)
    sample = documents[:4096]
    residual = sample - centroids[ops.assign(sample, centroids)[0]]
    quantiles = np.quantile(residual.ravel(), np.arange(1, 8) / 8).astype(np.float32)
    cutoffs, weights = quantiles[1::2].copy(), quantiles[::2].copy()
    codes, residuals = ops.compress(documents, centroids, cutoffs)
    norms = ops.inverse_norms(codes, residuals, centroids, weights)
    query = clustered(rng, documents[rng.integers(len(documents), size=QUERY_TOKENS)], QUERY_TOKENS)
    doclens = np.full(n_docs, DOCUMENT_TOKENS, np.int32)
    trellis = fit_trellis(residual, NBITS)
    return Inputs(
        query, documents, doclens, centroids, cutoffs, weights, codes, residuals, norms, trellis
    )


@contextlib.contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Run ours, torch and numpy's BLAS with the same number of threads."""
    before = colbert_fast.get_num_threads(), torch.get_num_threads()
    with threadpoolctl.threadpool_limits(count, user_api="blas"):
        colbert_fast.set_num_threads(count)
        torch.set_num_threads(count)
        yield
    colbert_fast.set_num_threads(before[0])
    torch.set_num_threads(before[1])


def uneven_doclens(n_tokens: int) -> np.ndarray:
    """Lengths from 10 to 180, as real passages have them: int32, summing to ``n_tokens``."""
    rng = np.random.default_rng(12)
    ends = np.cumsum(rng.integers(10, 181, size=n_tokens // 10 + 1))
    ends = np.append(ends[ends < n_tokens], n_tokens)
    return np.diff(ends, prepend=0).astype(np.int32)


def weights_by_byte(weights: np.ndarray) -> np.ndarray:
    """The decoded weights of every packed byte: float32 (256, 8 / NBITS)."""
    packed = np.arange(256, dtype=np.uint8)[:, None]
    return weights[reference.unpack_residuals(packed, NBITS)]


def spans_of(n: int, block: int) -> list[slice]:
    """The tokens of ``block`` documents each."""
    step = block * DOCUMENT_TOKENS
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


class TorchBaseline:
    """The operations in torch, on ``block`` documents at a time."""

    def __init__(self, inputs: Inputs, block: int = BLOCK) -> None:
        self.data = Inputs(*map(torch.from_numpy, inputs))
        self.table = torch.from_numpy(weights_by_byte(inputs.weights))
        self.spans = spans_of(len(inputs.codes), block)

    def decompress_block(self, span: slice) -> torch.Tensor:
        index = self.data.residuals[span].int().view(-1)
        vectors = self.table.index_select(0, index).view(-1, DIM)
        vectors += self.data.centroids.index_select(0, self.data.codes[span])
        return torch.nn.functional.normalize(vectors, dim=1)

    def decompress(self) -> torch.Tensor:
        vectors = torch.empty_like(self.data.documents)
        for span in self.spans:
            vectors[span] = self.decompress_block(span)
        return vectors

    def sum_of_best(self, vectors: torch.Tensor) -> torch.Tensor:
        similarities = torch.matmul(vectors, self.data.query.T)
        return similarities.view(-1, DOCUMENT_TOKENS, QUERY_TOKENS).amax(1).sum(1)

    def residual_maxsim(self) -> torch.Tensor:
        return torch.cat([self.sum_of_best(self.decompress_block(span)) for span in self.spans])

    def maxsim(self, documents: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.sum_of_best(documents[span].float()) for span in self.spans])

    def maxsim_uneven(self, documents: torch.Tensor, doclens: torch.Tensor) -> torch.Tensor:
        """Without padding, which costs more than ``segment_reduce`` does."""
        similarities = torch.matmul(documents, self.data.query.T)
        return torch.segment_reduce(similarities, "max", lengths=doclens, unsafe=True).sum(1)

    def assign(self, points: torch.Tensor) -> torch.Tensor:
        blocks = points.split(ASSIGN_BLOCK)
        return torch.cat([torch.matmul(block, self.data.centroids.T).argmax(1) for block in blocks])

    def compress(self, points: torch.Tensor) -> torch.Tensor:
        codes = self.assign(points)
        buckets = torch.bucketize(points - self.data.centroids[codes], self.data.cutoffs)
        bits = torch.stack([buckets & 1, buckets >> 1], -1).view(len(points), -1, 8)
        shifts = torch.arange(7, -1, -1)
        return (bits << shifts).sum(-1).to(torch.uint8)

    def nearest_paths(self, points: torch.Tensor) -> torch.Tensor:
        """Viterbi over the states (the last two bits) of all points at once: (n, DIM), 0 to 3."""
        weights = self.data.trellis.view(4, 4)  # by state before and after
        paths = torch.full((len(points), 4), -torch.inf)
        paths[:, 0] = 0
        back = torch.empty((DIM, len(points), 4), dtype=torch.int64)
        for d in range(DIM):
            costs = (points[:, d, None, None] - weights).square_()
            paths, back[d] = (paths[:, :, None] - costs).max(1)
        states = torch.empty((len(points), DIM), dtype=torch.int64)
        states[:, -1] = paths.argmax(1)
        for d in range(DIM - 1, 0, -1):
            states[:, d - 1] = back[d].gather(1, states[:, d : d + 1])[:, 0]
        return states

    def compress_trellis(self, points: torch.Tensor) -> torch.Tensor:
        residuals = points - self.data.centroids[self.assign(points)]
        scales = residuals.norm(dim=1)
        for _ in range(2):
            states = self.nearest_paths(residuals / scales[:, None])
            before = torch.nn.functional.pad(states[:, :-1], (1, 0))
            values = self.data.trellis[before * 4 + states]
            scales = (residuals * values).sum(1) / values.square().sum(1)
        shifts = torch.tensor([6, 4, 2, 0])
        return (states.view(len(points), -1, 4) << shifts).sum(-1).to(torch.uint8)

    def accumulate(self) -> torch.Tensor:
        sums = torch.zeros_like(self.data.centroids)
        return sums.index_add_(0, self.data.codes, self.data.documents)

    def centroid_scores(self) -> torch.Tensor:
        return torch.matmul(self.data.centroids, self.data.query.T)

    def top_centroids(self, scores: torch.Tensor, nprobe: int) -> torch.Tensor:
        return torch.topk(scores, nprobe, dim=0).indices.T

    def approximate_maxsim(self, scores: torch.Tensor) -> torch.Tensor:
        blocks = (scores.index_select(0, self.data.codes[span]) for span in self.spans)
        shape = (-1, DOCUMENT_TOKENS, QUERY_TOKENS)
        return torch.cat([block.view(shape).amax(1).sum(1) for block in blocks])


class NumpyBaseline:
    """The operations in numpy, on ``block`` documents at a time."""

    def __init__(self, inputs: Inputs, block: int = BLOCK) -> None:
        self.data = inputs
        self.table = weights_by_byte(inputs.weights)
        self.spans = spans_of(len(inputs.codes), block)

    def decompress_block(self, span: slice) -> np.ndarray:
        vectors = self.table.take(self.data.residuals[span], 0).reshape(-1, DIM)
        vectors += self.data.centroids.take(self.data.codes[span], 0)
        norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
        vectors /= np.maximum(norms, np.float32(1e-12))[:, None]
        return vectors

    def decompress(self) -> np.ndarray:
        vectors = np.empty_like(self.data.documents)
        for span in self.spans:
            vectors[span] = self.decompress_block(span)
        return vectors

    def sum_of_best(self, vectors: np.ndarray) -> np.ndarray:
        similarities = vectors @ self.data.query.T
        return similarities.reshape(-1, DOCUMENT_TOKENS, QUERY_TOKENS).max(1).sum(1)

    def residual_maxsim(self) -> np.ndarray:
        scores = [self.sum_of_best(self.decompress_block(span)) for span in self.spans]
        return np.concatenate(scores)

    def maxsim(self, documents: np.ndarray) -> np.ndarray:
        blocks = (documents[span].astype(np.float32, copy=False) for span in self.spans)
        return np.concatenate([self.sum_of_best(block) for block in blocks])

    def maxsim_uneven(self, documents: np.ndarray, doclens: np.ndarray) -> np.ndarray:
        starts = np.cumsum(doclens) - doclens
        return np.maximum.reduceat(documents @ self.data.query.T, starts, axis=0).sum(1)

    def assign(self, points: np.ndarray) -> np.ndarray:
        blocks = [points[i : i + ASSIGN_BLOCK] for i in range(0, len(points), ASSIGN_BLOCK)]
        return np.concatenate([(block @ self.data.centroids.T).argmax(1) for block in blocks])

    def compress(self, points: np.ndarray) -> np.ndarray:
        codes = self.assign(points)
        buckets = np.searchsorted(self.data.cutoffs, points - self.data.centroids[codes])
        bits = np.stack([buckets & 1, buckets >> 1], -1).astype(np.uint8)
        return np.packbits(bits.reshape(len(points), -1), axis=1)

    def nearest_paths(self, points: np.ndarray) -> np.ndarray:
        """As in torch, where the words are."""
        weights, n = self.data.trellis.reshape(4, 4), len(points)
        paths = np.full((n, 4), -np.inf, np.float32)
        paths[:, 0] = 0
        back = np.empty((DIM, n, 4), np.int64)
        for d in range(DIM):
            costs = np.square(points[:, d, None, None] - weights)
            sums = paths[:, :, None] - costs
            back[d] = sums.argmax(1)
            paths = sums.max(1)
        states = np.empty((n, DIM), np.int64)
        states[:, -1] = paths.argmax(1)
        for d in range(DIM - 1, 0, -1):
            states[:, d - 1] = back[d][np.arange(n), states[:, d]]
        return states

    def compress_trellis(self, points: np.ndarray) -> np.ndarray:
        residuals = points - self.data.centroids[self.assign(points)]
        scales = np.linalg.norm(residuals, axis=1)
        for _ in range(2):
            states = self.nearest_paths(residuals / scales[:, None])
            before = np.pad(states[:, :-1], ((0, 0), (1, 0)))
            values = self.data.trellis[before * 4 + states]
            scales = (residuals * values).sum(1) / np.square(values).sum(1)
        shifted = states.reshape(len(points), -1, 4) << np.array([6, 4, 2, 0])
        return shifted.sum(-1).astype(np.uint8)

    def accumulate(self) -> np.ndarray:
        order = np.argsort(self.data.codes, kind="stable")
        cells, starts = np.unique(self.data.codes[order], return_index=True)
        sums = np.zeros_like(self.data.centroids)
        sums[cells] = np.add.reduceat(self.data.documents[order], starts)
        return sums

    def centroid_scores(self) -> np.ndarray:
        return self.data.centroids @ self.data.query.T

    def top_centroids(self, scores: np.ndarray, nprobe: int) -> np.ndarray:
        best = np.argpartition(-scores, nprobe, axis=0)[:nprobe]
        order = np.argsort(-np.take_along_axis(scores, best, 0), axis=0)
        return np.take_along_axis(best, order, 0).T

    def approximate_maxsim(self, scores: np.ndarray) -> np.ndarray:
        blocks = (scores.take(self.data.codes[span], 0) for span in self.spans)
        shape = (-1, DOCUMENT_TOKENS, QUERY_TOKENS)
        return np.concatenate([block.reshape(shape).max(1).sum(1) for block in blocks])
