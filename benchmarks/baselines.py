"""Plain torch and numpy versions of what the library does, common inputs, and the floors.

The baselines are what a careful user would write: whole-array operations, tables made beforehand,
documents of equal length so that no padding or loop is needed (the kernels get no such favour: they
are told lengths), blocks of documents that stay in the cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import threadpoolctl
import torch

import colbert_fast
from colbert_fast.kernels import ops, reference

# What one core of the machine that the floors are quoted for (Zen 5, AVX-512 with VNNI) can do.
FP32_GFLOPS = 220.0
INT8_GOPS = 873.0
DRAM_GB_PER_S = 30.0
L2_GB_PER_S = 150.0

DIM, NBITS, QUERY_TOKENS, DOCUMENT_TOKENS = 128, 2, 32, 70
BLOCK = 128  # documents that the baselines score at a time


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
    residual = (sample - centroids[ops.assign(sample, centroids)[0]]).ravel()
    quantiles = np.quantile(residual, np.arange(1, 8) / 8).astype(np.float32)
    cutoffs, weights = quantiles[1::2].copy(), quantiles[::2].copy()
    codes, residuals = ops.compress(documents, centroids, cutoffs)
    norms = ops.inverse_norms(codes, residuals, centroids, weights)
    query = clustered(rng, documents[rng.integers(len(documents), size=QUERY_TOKENS)], QUERY_TOKENS)
    doclens = np.full(n_docs, DOCUMENT_TOKENS, np.int32)
    return Inputs(query, documents, doclens, centroids, cutoffs, weights, codes, residuals, norms)


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


def weights_by_byte(weights: np.ndarray) -> np.ndarray:
    """The decoded weights of every packed byte: float32 (256, 8 / nbits)."""
    nbits = len(weights).bit_length() - 1
    return weights[reference.unpack_residuals(np.arange(256, dtype=np.uint8)[:, None], nbits)]


class TorchBaseline:
    """The operations in torch, on tensors made beforehand."""

    def __init__(self, inputs: Inputs) -> None:
        self.data = Inputs(*map(torch.from_numpy, inputs))
        self.table = torch.from_numpy(weights_by_byte(inputs.weights))
        self.codes = self.data.codes.long()

    def decompress(self, start: int, end: int) -> torch.Tensor:
        weights = torch.nn.functional.embedding(self.data.residuals[start:end].int(), self.table)
        vectors = weights.view(end - start, DIM) + self.data.centroids[self.codes[start:end]]
        return torch.nn.functional.normalize(vectors, dim=1)

    def sum_of_best(self, vectors: torch.Tensor) -> torch.Tensor:
        similarities = torch.matmul(vectors, self.data.query.T)
        return similarities.view(-1, DOCUMENT_TOKENS, QUERY_TOKENS).amax(1).sum(1)

    def residual_maxsim(self) -> torch.Tensor:
        step = BLOCK * DOCUMENT_TOKENS
        starts = range(0, len(self.codes), step)
        ends = [min(start + step, len(self.codes)) for start in starts]
        return torch.cat(
            [self.sum_of_best(self.decompress(*span)) for span in zip(starts, ends, strict=True)]
        )

    def maxsim(self) -> torch.Tensor:
        blocks = self.data.documents.split(BLOCK * DOCUMENT_TOKENS)
        return torch.cat([self.sum_of_best(block) for block in blocks])

    def assign(self, points: torch.Tensor) -> torch.Tensor:
        blocks = points.split(1024)
        return torch.cat([torch.matmul(block, self.data.centroids.T).argmax(1) for block in blocks])

    def compress(self, points: torch.Tensor) -> torch.Tensor:
        codes = self.assign(points)
        buckets = torch.bucketize(points - self.data.centroids[codes], self.data.cutoffs)
        bits = torch.stack([buckets & 1, buckets >> 1], -1).view(len(points), -1, 8)
        shifts = torch.arange(7, -1, -1)
        return (bits << shifts).sum(-1).to(torch.uint8)

    def accumulate(self) -> torch.Tensor:
        sums = torch.zeros_like(self.data.centroids)
        return sums.index_add_(0, self.codes, self.data.documents)

    def centroid_scores(self) -> torch.Tensor:
        return torch.matmul(self.data.centroids, self.data.query.T)

    def top_centroids(self, scores: torch.Tensor, nprobe: int) -> torch.Tensor:
        return torch.topk(scores, nprobe, dim=0).indices.T

    def approximate_maxsim(self, scores: torch.Tensor) -> torch.Tensor:
        blocks = self.codes.view(-1, DOCUMENT_TOKENS).split(BLOCK)
        return torch.cat([scores[block].amax(1).sum(1) for block in blocks])


class NumpyBaseline:
    """The operations in numpy."""

    def __init__(self, inputs: Inputs) -> None:
        self.data = inputs
        self.table = weights_by_byte(inputs.weights)

    def decompress(self, start: int, end: int) -> np.ndarray:
        vectors = self.table[self.data.residuals[start:end]].reshape(-1, DIM)
        vectors += self.data.centroids[self.data.codes[start:end]]
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
        return vectors

    def sum_of_best(self, vectors: np.ndarray) -> np.ndarray:
        similarities = vectors @ self.data.query.T
        return similarities.reshape(-1, DOCUMENT_TOKENS, QUERY_TOKENS).max(1).sum(1)

    def residual_maxsim(self) -> np.ndarray:
        step, n = BLOCK * DOCUMENT_TOKENS, len(self.data.codes)
        spans = [(start, min(start + step, n)) for start in range(0, n, step)]
        return np.concatenate([self.sum_of_best(self.decompress(*span)) for span in spans])

    def maxsim(self) -> np.ndarray:
        step = BLOCK * DOCUMENT_TOKENS
        blocks = [self.data.documents[i : i + step] for i in range(0, len(self.data.codes), step)]
        return np.concatenate([self.sum_of_best(block) for block in blocks])

    def assign(self, points: np.ndarray) -> np.ndarray:
        blocks = [points[i : i + 1024] for i in range(0, len(points), 1024)]
        return np.concatenate([(block @ self.data.centroids.T).argmax(1) for block in blocks])

    def compress(self, points: np.ndarray) -> np.ndarray:
        codes = self.assign(points)
        buckets = np.searchsorted(self.data.cutoffs, points - self.data.centroids[codes])
        bits = np.stack([buckets & 1, buckets >> 1], -1).astype(np.uint8)
        return np.packbits(bits.reshape(len(points), -1), axis=1)

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
        codes = self.data.codes.reshape(-1, DOCUMENT_TOKENS)
        blocks = [codes[i : i + BLOCK] for i in range(0, len(codes), BLOCK)]
        return np.concatenate([scores[block].max(1).sum(1) for block in blocks])
