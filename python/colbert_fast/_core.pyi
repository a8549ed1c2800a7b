"""The extension. Private: every public function is in kernels.ops, with its shapes and dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__version__: str
compiler: str
max_dim: int

def available_isas() -> list[str]: ...
def isa() -> str: ...
def set_isa(name: str) -> None: ...
def get_num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def maxsim(query: Any, documents: Any, doclens: Any, scores: Any, argmax: Any) -> None: ...
def maxsim_grad_query(documents: Any, doclens: Any, argmax: Any, grad: Any, out: Any) -> None: ...
def maxsim_grad_documents(query: Any, doclens: Any, argmax: Any, grad: Any, out: Any) -> None: ...
def pack(buckets: Any, nbits: int, packed: Any) -> None: ...
def unpack(packed: Any, nbits: int, buckets: Any) -> None: ...
def compress(embeddings: Any, centroids: Any, cutoffs: Any, codes: Any, residuals: Any) -> None: ...
def compress_trellis(
    embeddings: Any, centroids: Any, weights: Any, codes: Any, residuals: Any, scales: Any
) -> None: ...
def decompress(
    codes: Any, residuals: Any, centroids: Any, weights: Any, scales: Any, embeddings: Any
) -> None: ...
def inverse_norms(
    codes: Any, residuals: Any, centroids: Any, weights: Any, scales: Any, inverse_norms: Any
) -> None: ...
def residual_maxsim(
    query: Any,
    codes: Any,
    residuals: Any,
    doclens: Any,
    centroids: Any,
    weights: Any,
    scales: Any,
    inverse_norms: Any,
    scores: Any,
) -> None: ...
def contenders(
    query: Any,
    codes: Any,
    residuals: Any,
    centroids: Any,
    weights: Any,
    scales: Any,
    inverse_norms: Any,
    slack: Any,
    relative: float,
    marks: Any,
) -> float: ...
def centroid_scores(query: Any, centroids: Any, scores: Any) -> None: ...
def top_centroids(scores: Any, cells: Any) -> None: ...
def pack_codes(codes: Any, bits: int, packed: Any) -> None: ...
def unpack_codes(packed: Any, bits: int, first: int, codes: Any) -> None: ...
def read_lists(
    counts: Any, offsets: Any, data: Any, cells: Any, n_docs: int
) -> NDArray[np.int32]: ...
def approximate_maxsim(
    scores: Any, codes: Any, doclens: Any, candidates: Any, threshold: float | None, out: Any
) -> None: ...
def top_k(scores: Any, values: Any, indices: Any) -> None: ...
def assign(points: Any, centroids: Any, codes: Any, best: Any, exact: bool) -> None: ...
def accumulate(points: Any, codes: Any, sums: Any, counts: Any) -> None: ...
def pooled_rows(doclens: Any, n_tokens: int, factor: int, protected: int) -> int: ...
def pool(
    embeddings: Any, doclens: Any, factor: int, protected: int, pooled: Any, pooled_doclens: Any
) -> int: ...

class ListBuilder:
    @property
    def counts(self) -> NDArray[np.int32]: ...
    @property
    def offsets(self) -> NDArray[np.int64]: ...
    def __init__(
        self,
        packed: Any,
        bits: int,
        doclens: Any,
        num_centroids: int,
        num_codes: int | None = ...,
    ) -> None: ...
    def fill(self, first: int, last: int, data: Any) -> None: ...

class Searcher:
    def __init__(
        self,
        *,
        centroids: Any,
        weights: Any,
        parts: list[dict[str, Any]],
    ) -> None: ...
    def search(
        self,
        queries: Any,
        starts: Any,
        *,
        nprobe: int,
        ndocs: int,
        plaid: bool,
        threshold: float,
        exhaustive: bool,
        subset: Any,
        candidates: tuple[Any, Any] | None,
        ids: Any,
        scores: Any,
    ) -> None: ...
