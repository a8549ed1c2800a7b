"""The CUDA kernels beside their floors and plain torch, on one GPU: prints a table.

    python benchmarks/bench_cuda.py

A floor is the larger of the bytes that have to move, at the bandwidth of a copy, and the
operations, at the rate of a large product, both measured here. Each row checks its result before it
is timed; what fails is told at the end, below the other rows. Times are medians over launches, each
between two events on the device; what the host does is in those of "from numpy to numpy" only.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from colbert_fast.kernels import cuda, ops
from colbert_fast.kernels.backend import backend_info
from colbert_fast.kernels.backend import cuda as kernels
from colbert_fast.search.device import DeviceSearcher
from colbert_fast.search.params import SearchParams

DIM, QUERY_TOKENS, REPEATS = 128, 32, 50


def milliseconds(
    call: Callable[[], Any], repeats: int = REPEATS, *, with_host: bool = False
) -> float:
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if not with_host:
            torch.cuda._sleep(1_000_000)  # cycles, in which the host gets ahead of the device
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


class Floor(NamedTuple):
    bytes_per_ms: float
    flops_per_ms: dict[torch.dtype, float]

    @classmethod
    def measure(cls) -> Floor:
        block = torch.empty(1 << 28, device="cuda")
        other = torch.empty_like(block)
        copy = 2 * block.nbytes / milliseconds(lambda: other.copy_(block), 10)
        rates = {}
        for dtype in (torch.float32, torch.bfloat16):
            a = torch.randn(8192, 8192, device="cuda", dtype=dtype)
            rates[dtype] = 2 * 8192**3 / milliseconds(lambda a=a: a @ a, 10)
        return cls(copy, rates)

    def of(self, moved: float, flops: float, dtype: torch.dtype) -> float:
        return max(moved / self.bytes_per_ms, flops / self.flops_per_ms[dtype])


def unit(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    vectors = torch.nn.functional.normalize(torch.randn(*shape, device="cuda"), dim=-1)
    return vectors.to(dtype)


def row(
    name: str,
    ours: Callable[[], Any],
    floor: float,
    torch_: Callable[[], Any],
    *,
    with_host: bool = False,
) -> None:
    time, plain = (milliseconds(call, with_host=with_host) for call in (ours, torch_))
    print(
        f"| {name} | {time:.4f} | {floor:.4f} | {time / floor:.1f} | {plain:.4f} "
        f"| {plain / time:.1f} |",
        flush=True,
    )


def bench_maxsim(floor: Floor, dtype: torch.dtype, n_docs: int, length: int) -> None:
    query, documents = unit(QUERY_TOKENS, DIM, dtype=dtype), unit(n_docs * length, DIM, dtype=dtype)
    doclens = torch.full((n_docs,), length, dtype=torch.int32, device="cuda")

    def plain() -> torch.Tensor:
        similarities = query @ documents.view(n_docs, length, DIM).mT
        return similarities.amax(-1).float().sum(-1)

    ours = ops.maxsim(query, documents, doclens)
    truth = (query.float() @ documents.float().view(n_docs, length, DIM).mT).amax(-1).sum(-1)
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-3)
    flops = 2 * QUERY_TOKENS * len(documents) * DIM
    name = f"maxsim, 1 x {n_docs} x {length}, {str(dtype)[6:]}"
    least = floor.of(documents.nbytes, flops, dtype)
    row(name, lambda: ops.maxsim(query, documents, doclens), least, plain)


def bench_training(floor: Floor, b: int, per_query: int, length: int) -> None:
    query, documents = unit(b, QUERY_TOKENS, DIM), unit(b * per_query * length, DIM)
    n_docs = b * per_query
    doclens = torch.full((n_docs,), length, dtype=torch.int32, device="cuda")
    grad = torch.randn(b, n_docs, device="cuda")
    blocks = documents.view(n_docs, length, DIM)

    def ours() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scores, argmax = ops.maxsim(query, documents, doclens, return_argmax=True)
        met = (doclens, argmax, grad)
        return (
            scores,
            ops.maxsim_grad_query(documents, *met),
            ops.maxsim_grad_documents(query, *met, n_tokens=len(documents)),
        )

    def plain() -> list[torch.Tensor]:
        q, d = (tensor.detach().requires_grad_() for tensor in (query, blocks))
        scores = torch.einsum("bqd,ntd->bnqt", q, d).amax(-1).sum(-1)
        return [scores, *torch.autograd.grad(scores, (q, d), grad)]

    found, expected = ours(), plain()
    torch.testing.assert_close(found[0], expected[0].detach(), rtol=0, atol=1e-3)
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        agree = ((mine - theirs.view_as(mine)).abs() <= 1e-3).all(-1).float().mean()
        assert agree > 0.99, agree  # of two products nearly equal either may be the largest
    del found, expected
    peaks = []
    for call in (ours, plain):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        peaks.append((torch.cuda.max_memory_allocated() - before) / 2**20)
    flops = 2 * b * QUERY_TOKENS * len(documents) * DIM
    name = f"maxsim and gradients, {b} x {n_docs} x {length} ({peaks[0]:.0f} v {peaks[1]:.0f} MiB)"
    row(name, ours, floor.of(2 * documents.nbytes, flops, torch.float32), plain)


def bench_residuals(floor: Floor, nbits: int, n_docs: int, length: int, k: int = 1 << 16) -> None:
    n, query, centroids = n_docs * length, unit(QUERY_TOKENS, DIM), unit(k, DIM)
    codes = torch.randint(k, (n,), device="cuda", dtype=torch.int32)
    residuals = torch.randint(256, (n, DIM * nbits // 8), device="cuda", dtype=torch.uint8)
    scales, norms = (torch.full((n,), b, device="cuda", dtype=torch.uint8) for b in (140, 126))
    weights = torch.randn(16, generator=torch.Generator().manual_seed(1)).sort().values / 8
    doclens = torch.full((n_docs,), length, dtype=torch.int32, device="cuda")
    table = cuda.byte_scores(query, cuda.quantise_centroids(centroids))
    packed = (codes, residuals)

    def ours() -> torch.Tensor:
        return cuda.residual_maxsim(query, *packed, doclens, weights, scales, norms, *table)

    host = [array.cpu() for array in (query, *packed, doclens, centroids)]
    expected = ops.residual_maxsim(
        *host, weights, scales=scales.cpu(), precision="int8", inverse_norms=norms.cpu()
    )
    assert torch.equal(ours().cpu(), expected)

    def plain() -> torch.Tensor:
        vectors = ops.decompress(*packed, centroids, weights, scales=scales)
        return (query @ vectors.view(n_docs, length, DIM).mT).amax(-1).sum(-1)

    moved = n * (DIM * nbits // 8 + 6 + QUERY_TOKENS)
    flops = 2 * n * QUERY_TOKENS * DIM
    name = f"residual_maxsim, {nbits} bits, {n_docs} x {length}"
    row(name, ours, floor.of(moved, flops, torch.bfloat16), plain)
    name = f"centroid scores as bytes, {k}"
    moved, flops = k * (DIM + QUERY_TOKENS), 2 * k * QUERY_TOKENS * DIM
    quantised = cuda.quantise_centroids(centroids)
    row(
        name,
        lambda: cuda.byte_scores(query, quantised),
        floor.of(moved, flops, torch.bfloat16),
        lambda: centroids @ query.T,
    )
    row(
        f"decompress, {nbits} bits, {n}",
        lambda: ops.decompress(*packed, centroids, weights, scales=scales),
        floor.of(n * 4 * DIM, 0, torch.float32),
        lambda: centroids[codes],
    )


def bench_build(floor: Floor, nbits: int = 2, n: int = 1 << 16, k: int = 1 << 14) -> None:
    # Centroids are float16 values, as codecs store them.
    points, centroids = unit(n, DIM, dtype=torch.float16), unit(k, DIM).half().float()

    def nearest() -> Any:
        return (points @ centroids.half().T).max(1)

    codes, best = ops.assign(points, centroids)
    torch.testing.assert_close(best, nearest().values.float(), rtol=0, atol=2e-3)
    least = floor.of(points.nbytes, 2 * n * k * DIM, torch.bfloat16)
    row(f"assign, {n} to {k}", lambda: ops.assign(points, centroids), least, nearest)

    weights = torch.randn(16, generator=torch.Generator().manual_seed(1)).sort().values / 8
    residuals = torch.empty((n, DIM * nbits // 8), device="cuda", dtype=torch.uint8)
    scales = torch.empty((n,), device="cuda", dtype=torch.uint8)

    def compress() -> None:
        cuda.run("compress_trellis", points, centroids, codes, weights, residuals, scales)

    compress()
    own = centroids[codes[:1000]]  # few enough for the CPU to look at all
    found = ops.compress_trellis(points[:1000].cpu(), own.cpu(), weights, nbits)
    assert torch.equal(found[1], residuals[:1000].cpu())
    cutoffs = weights[4:7].cuda()
    least = floor.of(points.nbytes + residuals.nbytes, 0, torch.float32)
    name = f"compress_trellis, {nbits} bits, {n}; torch: bucketize"
    row(name, compress, least, lambda: torch.bucketize(points - centroids[codes], cutoffs))


class Collection(NamedTuple):
    """Documents of a few topics each, as an index and as the vectors that it stands for."""

    searcher: DeviceSearcher
    vectors: torch.Tensor  # bfloat16 (n_docs, length, DIM)
    doclens: torch.Tensor

    @classmethod
    def make(cls, nbits: int, n_docs: int, length: int, k: int) -> Collection:
        n, topics, centroids = n_docs * length, 12, unit(k, DIM)
        of_document = torch.randint(k, (n_docs, topics), device="cuda")
        chosen = torch.randint(topics, (n_docs, length), device="cuda")
        codes = of_document.gather(1, chosen).flatten().to(torch.int32)
        residuals = torch.randint(256, (n, DIM * nbits // 8), device="cuda", dtype=torch.uint8)
        weights = torch.randn(16, generator=torch.Generator().manual_seed(1)).sort().values / 24
        doclens = torch.full((n_docs,), length, dtype=torch.int32, device="cuda")
        lists = ops.build_lists(codes.cpu().numpy(), doclens.cpu().numpy(), k)
        packed = ops.pack_codes(codes.cpu().numpy(), max(1, (k - 1).bit_length()))
        padding = torch.zeros(kernels().list_padding, dtype=torch.uint8)
        host = {
            "codes": torch.from_numpy(packed),
            "counts": torch.from_numpy(lists.counts),
            "offsets": torch.from_numpy(lists.offsets),
            "data": torch.cat([torch.from_numpy(lists.data), padding]),
        }
        arrays: dict[str, Any] = {
            **{name: tensor.cuda() for name, tensor in host.items()},
            **cuda.quantise_centroids(centroids)._asdict(),
            "centroids": centroids,
            "doclens": doclens,
            "first": torch.arange(n_docs, device="cuda") * length,
            "residuals": residuals,
            **dict.fromkeys(("scales", "inverse_norms", "embeddings")),
        }
        vectors = ops.decompress(codes, residuals, centroids, weights).view(n_docs, length, DIM)
        return cls(DeviceSearcher(arrays, weights.numpy()), vectors.bfloat16(), doclens)

    def queries(self, batch: int) -> torch.Tensor:
        """Noisy tokens of one document each."""
        n_docs, length, _ = self.vectors.shape
        documents = torch.randint(n_docs, (batch, 1), device="cuda")
        tokens = torch.randint(length, (batch, QUERY_TOKENS), device="cuda")
        return torch.nn.functional.normalize(
            self.vectors[documents, tokens].float() + unit(batch, QUERY_TOKENS, DIM) * 0.7, dim=-1
        )


def bench_search(floor: Floor, batch: int, n_docs: int, length: int, ndocs: int) -> None:
    k, nbits, depth = 1 << 13, 2, 10
    collection = Collection.make(nbits, n_docs, length, k)
    queries, core = collection.queries(batch), collection.searcher._core
    ids = torch.empty((batch, depth), dtype=torch.int64, device="cuda")
    scores = torch.empty((batch, depth), device="cuda")
    damaged = torch.zeros(1, dtype=torch.int32, device="cuda")

    def search(kind: str) -> None:
        size = core.workspace(batch, QUERY_TOKENS, depth, 4, ndocs, kind)
        workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
        stream = torch.cuda.current_stream().cuda_stream
        core.search(
            queries, 4, ndocs, kind, None, None, None, workspace, ids, scores, damaged, stream
        )

    def plain() -> torch.Tensor:
        half = queries.bfloat16()
        similarities = [(query @ collection.vectors.mT).amax(-1).sum(-1) for query in half]
        return torch.stack(similarities).topk(depth).indices

    search("exhaustive")
    truth = ids.tolist()
    host = [*queries.cpu().numpy()]
    moved = k * (DIM + 2 * QUERY_TOKENS * batch)
    moved += batch * ndocs * length * (DIM * nbits // 8 + 3 + QUERY_TOKENS)
    least = floor.of(moved, 2 * batch * QUERY_TOKENS * DIM * (k + ndocs * length), torch.bfloat16)
    for kind in ("filter", "scan"):
        search(kind)
        same = [set(a) & set(b) for a, b in zip(ids.tolist(), truth, strict=True)]
        recall = sum(map(len, same)) / (batch * depth)
        assert recall >= 0.9, recall
        name = f"{batch} queries, {n_docs} x {length}, {kind}, recall {recall:.3f}"
        row(name, lambda kind=kind: search(kind), least, plain)
    params = SearchParams.resolve(depth, ndocs=ndocs)
    name = f"{batch} queries, {n_docs} x {length}, from numpy to numpy"
    row(name, lambda: collection.searcher.search(host, params), least, plain, with_host=True)


ROWS: list[tuple[Any, ...]] = [
    (bench_maxsim, torch.bfloat16, 1000, 300),
    (bench_maxsim, torch.float32, 1000, 300),
    (bench_training, 32, 2, 180),
    *((bench_residuals, nbits, 4096, 70) for nbits in (1, 2, 4)),
    (bench_build,),
    *((bench_search, batch, 14_286, 70, 1024) for batch in (1, 64)),
]


def attempt(floor: Floor, bench: Callable[..., None], *arguments: Any) -> str | None:
    try:
        bench(floor, *arguments)
    except (AssertionError, RuntimeError, MemoryError) as error:
        return f"{bench.__name__} {arguments}: {error}"
    return None


def main() -> None:
    torch.manual_seed(1)
    floor = Floor.measure()
    print(f"{backend_info()['cuda_devices']}, copy {floor.bytes_per_ms / 1e6:.0f} GB/s, ", end="")
    rates = {str(dtype)[6:]: f"{rate / 1e9:.0f}" for dtype, rate in floor.flops_per_ms.items()}
    print(f"products in TFLOP/s {rates}\n")
    print("| kernel | ms | floor | ratio | torch | faster |\n|---|---|---|---|---|---|")
    failed = [problem for each in ROWS if (problem := attempt(floor, *each))]
    if failed:
        raise SystemExit("\n".join(["", *failed]))


if __name__ == "__main__":
    main()
