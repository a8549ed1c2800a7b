"""The CUDA extension. Private: every public function is in kernels.ops, or in kernels.cuda."""

from __future__ import annotations

from typing import Any

release: str
list_padding: int
max_mma_dim: int
max_top: int

def device_count() -> int: ...
def can_run(device: int) -> bool: ...
def device_name(device: int) -> str: ...
def problem() -> str: ...
def query_words(nq: int, dim: int) -> int: ...
def narrow_centroids(centroids: Any, rows: Any, extremes: Any, stream: int) -> None: ...
def assign(
    points: Any, centroids: Any, codes: Any, best: Any, rows: Any, extremes: Any, stream: int
) -> None: ...
def accumulate(points: Any, order: Any, first: Any, sums: Any, stream: int) -> None: ...
def centroid_scores(query: Any, centroids: Any, scores: Any, stream: int) -> None: ...
def top_centroids(scores: Any, cells: Any, stream: int) -> None: ...
def top_k(scores: Any, values: Any, indices: Any, stream: int) -> None: ...
def starts(doclens: Any, first: Any, stream: int) -> None: ...
def maxsim(
    query: Any,
    documents: Any,
    first: Any,
    doclens: Any,
    scores: Any,
    argmax: Any,
    stream: int,
) -> None: ...
def maxsim_grad_query(
    documents: Any, first: Any, doclens: Any, argmax: Any, grad: Any, out: Any, stream: int
) -> None: ...
def maxsim_grad_documents(
    query: Any, first: Any, doclens: Any, argmax: Any, grad: Any, out: Any, stream: int
) -> None: ...
def pack(buckets: Any, nbits: int, packed: Any, stream: int) -> None: ...
def unpack(packed: Any, nbits: int, buckets: Any, stream: int) -> None: ...
def decompress(
    codes: Any,
    residuals: Any,
    centroids: Any,
    weights: Any,
    scales: Any,
    embeddings: Any,
    stream: int,
) -> None: ...
def inverse_norms(
    codes: Any,
    residuals: Any,
    centroids: Any,
    weights: Any,
    scales: Any,
    inverse_norms: Any,
    stream: int,
) -> None: ...
def compress(
    embeddings: Any, centroids: Any, codes: Any, cutoffs: Any, residuals: Any, stream: int
) -> None: ...
def compress_trellis(
    embeddings: Any,
    centroids: Any,
    codes: Any,
    weights: Any,
    residuals: Any,
    scales: Any,
    stream: int,
) -> None: ...
def quantise_centroids(
    centroids: Any, rows: Any, scale: Any, longest: Any, stream: int
) -> None: ...
def byte_scores(
    query: Any,
    rows: Any,
    scale: Any,
    longest: Any,
    packed: tuple[Any, Any, Any, Any],
    table: Any,
    step: Any,
    stream: int,
) -> None: ...
def residual_maxsim(
    query: Any,
    codes: Any,
    residuals: Any,
    first: Any,
    doclens: Any,
    weights: Any,
    scales: Any,
    inverse_norms: Any,
    table: Any,
    step: Any,
    packed: tuple[Any, Any, Any, Any],
    scores: Any,
    stream: int,
) -> None: ...

class Searcher:
    def __init__(self, arrays: dict[str, Any], weights: Any) -> None: ...
    def workspace(
        self, n_queries: int, nq: int, k: int, nprobe: int, ndocs: int, kind: str
    ) -> int: ...
    def search(
        self,
        queries: Any,
        nprobe: int,
        ndocs: int,
        kind: str,
        allowed: Any,
        given: Any,
        given_starts: Any,
        workspace: Any,
        ids: Any,
        scores: Any,
        damaged: Any,
        stream: int,
    ) -> None: ...
