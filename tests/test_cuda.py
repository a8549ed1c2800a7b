"""CUDA: what is said without a GPU, the checks at the door, and the kernels where there is one.

Without a GPU the kernels' tests skip; COLBERT_FAST_REQUIRE_CUDA=1 makes them fail instead. Their
results are the bits of the CPU's kernels, which other tests hold to the reference.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from colbert_fast.compress.trellis import fit_trellis
from colbert_fast.errors import BackendUnavailable
from colbert_fast.kernels import backend, cuda, ops, reference
from support import DIMS, DOCLENS, NBITS, PAIRS, same_bits, unit_vectors
from tolerances import MMA_PER_QUERY_TOKEN, assert_best

BUILT = importlib.util.find_spec("colbert_fast._cuda") is not None
needs_build = pytest.mark.skipif(not BUILT, reason="built without CUDA")


@pytest.fixture
def gpu() -> Iterator[Any]:
    """Move arrays to the GPU."""
    missing = "" if backend.backend_info()["cuda_devices"] else "no GPU, or built without CUDA"
    if importlib.util.find_spec("torch") is None:
        missing = "tensors on a GPU are torch's"
    if missing and os.environ.get("COLBERT_FAST_REQUIRE_CUDA") == "1":
        pytest.fail(missing)
    elif missing:
        pytest.skip(missing)
    import torch

    yield lambda array: torch.as_tensor(array).cuda()
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:  # no kernel runs in this process any more
        pytest.exit(f"the GPU's context is lost: {error}", returncode=1)


def on_cpu(result: Any) -> Any:
    return tuple(map(on_cpu, result)) if isinstance(result, tuple) else result.cpu().numpy()


def assert_argmax(
    argmax: np.ndarray, query: np.ndarray, documents: np.ndarray, *, tolerance: float
) -> None:
    """Each token chosen is the best of its document, up to the error of the scores."""
    ends = np.cumsum(DOCLENS)
    for length, end, chosen in zip(DOCLENS, ends, argmax, strict=True):
        if length == 0:
            assert (chosen == -1).all()
        else:
            assert_best(chosen, query @ documents[end - length : end].T, tolerance=tolerance)


class FakeTensor:
    """What the door looks at of a tensor, on a device that there need not be."""

    def __init__(self, array: np.ndarray, device: str = "cuda", index: int = 0) -> None:
        self.array, self.shape = array, array.shape
        self.device = SimpleNamespace(type=device, index=index)
        self.dtype = f"torch.{array.dtype}"

    def data_ptr(self) -> int:
        return int(self.array.ctypes.data)

    def is_contiguous(self) -> bool:
        return bool(self.array.flags.c_contiguous)


def fake(*shape: int, dtype: Any = np.float32, **options: Any) -> FakeTensor:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    block = np.zeros(size + 16, np.uint8)
    start = -block.ctypes.data % 16
    return FakeTensor(block[start : start + size].view(dtype).reshape(shape), **options)


# -- without a GPU -----------------------------------------------------------------------------


def test_info_tells_whether_there_are_kernels_and_a_gpu() -> None:
    info = backend.backend_info()
    assert (info["cuda"] is not None) == BUILT
    assert isinstance(info["cuda_devices"], list)
    assert BUILT or not info["cuda_devices"]


def test_a_build_without_cuda_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_cuda_module", lambda: None)
    with pytest.raises(BackendUnavailable, match="COLBERT_FAST_CUDA=ON"):
        backend.cuda()
    assert backend.backend_info()["cuda"] is None


def test_a_machine_without_a_gpu_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(release="13.0", device_count=lambda: 0, problem=lambda: "no driver")
    monkeypatch.setattr(backend, "_cuda_module", lambda: module)
    with pytest.raises(BackendUnavailable, match=r"13\.0 finds no GPU .*no driver.*driver"):
        backend.cuda()
    assert backend.backend_info()["cuda_devices"] == []


def test_a_cuda_tensor_is_never_computed_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_cuda_module", lambda: None)
    arguments = [fake(2, 8), fake(3, 8), fake(1, dtype=np.int32)]
    with pytest.raises(BackendUnavailable):
        ops.cuda.run("maxsim", *arguments, None, None)
    with pytest.raises(TypeError, match="`packed` must be on the CPU, got an array on cuda:1"):
        ops.unpack_codes(fake(80, dtype=np.uint8, index=1), 8, 0, 2)


@needs_build
def test_arguments_lie_on_one_device() -> None:
    from colbert_fast import _cuda

    buckets, packed = fake(2, 8, dtype=np.uint8), fake(2, 2, dtype=np.uint8, index=1)
    with pytest.raises(TypeError, match="`packed` must be on cuda:0, got an array on cuda:1"):
        _cuda.pack(buckets, 2, packed, 0)
    with pytest.raises(TypeError, match="`packed` must be on cuda:0, got an array on the CPU"):
        _cuda.pack(buckets, 2, packed.array, 0)
    with pytest.raises(TypeError, match="`buckets` must be on a CUDA device"):
        _cuda.pack(buckets.array, 2, packed, 0)


@needs_build
@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"query": fake(1, 2, 12)}, ValueError, "`query` must have a dimension"),
        ({"query": fake(1, 2, 8, dtype=np.float64)}, TypeError, "float64"),
        ({"documents": fake(5, 16)}, ValueError, r"`documents` must be of shape \(any, 8\)"),
        ({"first": fake(2, dtype=np.int32)}, TypeError, "`first` must be int64"),
        ({"doclens": fake(3, dtype=np.int32)}, ValueError, "`first` must be of shape"),
        ({"scores": fake(1, 3)}, ValueError, "`scores` must have a column"),
        ({"argmax": fake(1, 2, 3, dtype=np.int32)}, ValueError, "`argmax` must be of shape"),
        ({"documents": fake(5, 8, device="mps")}, TypeError, "CPU or CUDA"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], error: type, says: str) -> None:
    from colbert_fast import _cuda

    arguments: dict[str, Any] = {
        "query": fake(1, 2, 8),
        "documents": fake(5, 8),
        "first": fake(2, dtype=np.int64),
        "doclens": fake(2, dtype=np.int32),
        "scores": fake(1, 2),
        "argmax": None,
    }
    with pytest.raises(error, match=says):
        _cuda.maxsim(**{**arguments, **change}, stream=0)


@needs_build
def test_no_more_are_picked_than_can_be_sorted() -> None:
    from colbert_fast import _cuda

    scores, cells = fake(5000, 1), fake(1, 4097, dtype=np.int32)
    with pytest.raises(ValueError, match="`nprobe` must be at most 4096 on a CUDA device"):
        _cuda.top_centroids(scores, cells, 0)
    with pytest.raises(ValueError, match="`k` must be at most 4096"):
        _cuda.top_k(fake(5000), fake(4097), fake(4097, dtype=np.int64), 0)
    with pytest.raises(ValueError, match="`nprobe` must be from 1"):
        _cuda.top_centroids(fake(3, 1), fake(1, 4, dtype=np.int32), 0)


@needs_build
@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"embeddings": fake(2, 12)}, ValueError, "`embeddings` must have a dimension"),
        ({"centroids": fake(0, 8)}, ValueError, "`centroids` must not be empty"),
        ({"codes": fake(3, dtype=np.int32)}, ValueError, r"`codes` must be of shape \(2,\)"),
        ({"cutoffs": np.zeros(4, np.float32)}, ValueError, "`cutoffs` must hold 1, 3, 7, 15 or"),
        ({"cutoffs": fake(3)}, TypeError, "`cutoffs` must be on the CPU"),
        ({"residuals": fake(2, 3, dtype=np.uint8)}, ValueError, "`residuals` must be of shape"),
    ],
)
def test_wrong_arguments_of_compress_are_named(
    change: dict[str, Any], error: type, says: str
) -> None:
    from colbert_fast import _cuda

    arguments: dict[str, Any] = {
        "embeddings": fake(2, 8),
        "centroids": fake(1, 8),
        "codes": fake(2, dtype=np.int32),
        "cutoffs": np.zeros(3, np.float32),
        "residuals": fake(2, 2, dtype=np.uint8),
    }
    with pytest.raises(error, match=says):
        _cuda.compress(**{**arguments, **change}, stream=0)


@needs_build
def test_tensor_cores_assign_up_to_128_dimensions() -> None:
    from colbert_fast import _cuda

    codes, best = fake(2, dtype=np.int32), fake(2)
    rows, extremes = fake(3, 136, dtype=np.float16), fake(2)
    with pytest.raises(ValueError, match="`rows` must be None for more than 128 dimensions"):
        _cuda.assign(fake(2, 136), fake(3, 136), codes, best, rows, extremes, 0)


@needs_build
def test_tensors_start_at_multiples_of_16_bytes() -> None:
    from colbert_fast import _cuda

    block = fake(9, 8, dtype=np.uint8)
    shifted = FakeTensor(block.array[1:])
    with pytest.raises(ValueError, match="`buckets` must be aligned to 16 bytes"):
        _cuda.pack(shifted, 2, fake(8, 2, dtype=np.uint8), 0)


@needs_build
def test_a_launch_that_fails_says_so() -> None:
    from colbert_fast import _cuda

    if _cuda.device_count() > 0:
        pytest.skip("a GPU would read the fake tensors")
    with pytest.raises(RuntimeError, match="CUDA: "):
        _cuda.pack(fake(2, 8, dtype=np.uint8), 2, fake(2, 2, dtype=np.uint8), 0)
    _cuda.pack(fake(0, 8, dtype=np.uint8), 2, fake(0, 2, dtype=np.uint8), 0)  # launches nothing


# -- with a GPU --------------------------------------------------------------------------------


@pytest.mark.parametrize("nbits", NBITS)
@pytest.mark.parametrize("dim", DIMS)
def test_pack_and_unpack(dim: int, nbits: int, gpu: Any, rng: np.random.Generator) -> None:
    buckets = rng.integers(0, 2**nbits, (67, dim), dtype=np.uint8)
    packed = ops.pack_residuals(gpu(buckets), nbits)
    assert same_bits(on_cpu(packed), ops.pack_residuals(buckets, nbits))
    assert same_bits(on_cpu(ops.unpack_residuals(packed, nbits)), buckets)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("nq", "dim"), PAIRS)
def test_maxsim_and_its_gradients(
    nq: int, dim: int, own: bool, dtype: str, gpu: Any, rng: np.random.Generator
) -> None:
    import torch

    b = 2 if own else 3
    query = torch.from_numpy(unit_vectors(rng, b, nq, dim))
    documents = torch.from_numpy(unit_vectors(rng, DOCLENS.sum(), dim)).to(getattr(torch, dtype))
    doclens = torch.from_numpy(DOCLENS[: len(DOCLENS) // b * b] if own else DOCLENS)
    documents = documents[: int(doclens.sum())]
    per_query = len(doclens) // b if own else None
    options: Any = {"documents_per_query": per_query, "return_argmax": True}
    scores, argmax = ops.maxsim(query, documents, doclens, **options)
    grad = torch.from_numpy(rng.standard_normal(scores.shape).astype(np.float32))
    found = ops.maxsim(gpu(query), gpu(documents), gpu(doclens), **options)
    assert same_bits(on_cpu(found), on_cpu((scores, argmax)))
    of_query = ops.maxsim_grad_query(gpu(documents), gpu(doclens), found[1], gpu(grad))
    assert same_bits(
        on_cpu(of_query), on_cpu(ops.maxsim_grad_query(documents, doclens, argmax, grad))
    )
    of_documents = ops.maxsim_grad_documents(gpu(query), gpu(doclens), found[1], gpu(grad))
    assert same_bits(
        on_cpu(of_documents), on_cpu(ops.maxsim_grad_documents(query, doclens, argmax, grad))
    )


@pytest.mark.parametrize("n", [0, 1, 5000, 100_000])
def test_documents_follow_one_another(n: int, gpu: Any, rng: np.random.Generator) -> None:
    doclens = rng.integers(0, 2**20, n, dtype=np.int32)
    first, _ = cuda.documents_of(gpu(doclens), gpu(doclens))
    assert same_bits(on_cpu(first), np.cumsum(doclens, dtype=np.int64) - doclens)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("nq", "dim"), PAIRS)
def test_centroids(nq: int, dim: int, dtype: str, gpu: Any, rng: np.random.Generator) -> None:
    import torch

    k, n = 3 * nq, int(DOCLENS.sum())
    centroids, query = unit_vectors(rng, k, dim), unit_vectors(rng, nq, dim)
    points = torch.from_numpy(unit_vectors(rng, n, dim)).to(getattr(torch, dtype))
    found = ops.assign(gpu(points), gpu(centroids))
    assert same_bits(on_cpu(found), on_cpu(ops.assign(points, torch.from_numpy(centroids))))
    scores = ops.centroid_scores(gpu(query), gpu(centroids))
    assert same_bits(on_cpu(scores), ops.centroid_scores(query, centroids))
    for nprobe in {1, nq, k}:
        cells = ops.top_centroids(scores, nprobe)
        assert same_bits(on_cpu(cells), ops.top_centroids(on_cpu(scores), nprobe))


@pytest.mark.parametrize("k", [1, 7, 1000, 4096])
@pytest.mark.parametrize("n", [1, 1024, 5000, 200_000])
def test_top_k(n: int, k: int, gpu: Any, rng: np.random.Generator) -> None:
    scores = rng.integers(-1000, 1000, n).astype(np.float32) / 8
    scores[rng.integers(0, n, 1 + n // 100)] = np.nan
    assert same_bits(on_cpu(ops.top_k(gpu(scores), k)), ops.top_k(scores, k))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("nq", "dim"), [(1, 8), (15, 128), (32, 128), (33, 96), (65, 40)])
def test_maxsim_by_tensor_cores(
    nq: int, dim: int, dtype: str, gpu: Any, rng: np.random.Generator
) -> None:
    import torch

    kind = getattr(torch, dtype)
    query = torch.from_numpy(unit_vectors(rng, 2, nq, dim)).to(kind)
    documents = torch.from_numpy(unit_vectors(rng, DOCLENS.sum(), dim)).to(kind)
    doclens = torch.from_numpy(DOCLENS)
    found, met = on_cpu(ops.maxsim(gpu(query), gpu(documents), gpu(doclens), return_argmax=True))
    for q, scores, argmax in zip(query.double().numpy(), found, met, strict=True):
        truth = reference.maxsim(q, documents.double().numpy(), DOCLENS)
        filled = np.isfinite(truth)
        assert (scores[~filled] == -np.inf).all()
        assert np.abs(scores - truth)[filled].max() <= nq * MMA_PER_QUERY_TOKEN
        assert_argmax(argmax, q, documents.double().numpy(), tolerance=2 * MMA_PER_QUERY_TOKEN)
    wide = ops.maxsim(gpu(query.float()), gpu(documents), gpu(doclens))
    np.testing.assert_allclose(found, on_cpu(wide), rtol=0, atol=nq * MMA_PER_QUERY_TOKEN)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("own", [False, True])
def test_training(own: bool, dtype: str, gpu: Any, rng: np.random.Generator) -> None:
    """Scores and gradients; of 16 bits by tensor cores, compiled and under autocast too."""
    import torch

    from colbert_fast.kernels import autograd

    kind = getattr(torch, dtype)
    rows = [unit_vectors(rng, 2, 9, 32), unit_vectors(rng, DOCLENS.sum(), 32)]
    leaves = [torch.from_numpy(each).to(kind).requires_grad_() for each in rows]
    there = [gpu(each.detach()).requires_grad_() for each in leaves]
    options: Any = {"documents_per_query": len(DOCLENS) // 2 if own else None}

    def run(inputs: list[Any], doclens: Any, maxsim: Any = autograd.maxsim) -> list[Any]:
        scores = maxsim(*inputs, doclens, **options)
        filled = scores.masked_fill(scores.isinf(), 0.0)
        return [filled.detach(), *torch.autograd.grad(filled.sum(), inputs)]

    doclens = torch.from_numpy(DOCLENS)
    ours = run(there, gpu(doclens))
    if kind == torch.float32:
        assert same_bits(on_cpu(tuple(ours)), on_cpu(tuple(run(leaves, doclens))))
    compiled = run(there, gpu(doclens), torch.compile(autograd.maxsim, fullgraph=True))
    assert all(map(torch.equal, ours, compiled))
    with torch.autocast("cuda", torch.bfloat16):
        narrow = run([each.float().detach().requires_grad_() for each in there], gpu(doclens))
    assert all(each.dtype == torch.float32 for each in narrow)
    if kind == torch.bfloat16:
        assert torch.equal(narrow[0], ours[0])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("k", "dim"), [(1, 8), (64, 128), (1500, 96), (300, 136)])
def test_kmeans(k: int, dim: int, dtype: str, gpu: Any, rng: np.random.Generator) -> None:
    """Tensor cores screen, up to 128 dimensions; codes and products are those of all centroids."""
    import torch

    points = torch.from_numpy(unit_vectors(rng, 3000, dim)).to(getattr(torch, dtype))
    centroids = torch.from_numpy(unit_vectors(rng, k, dim))
    centroids[k // 2 :: 7] = centroids[0]  # more that are equally near than a lane keeps
    points[5] = torch.nan
    expected = ops.assign(points, centroids)
    found = ops.assign(gpu(points), gpu(centroids))
    assert same_bits(on_cpu(found), on_cpu(expected))
    sums = ops.accumulate(gpu(points), found[0], k)
    wanted = on_cpu(ops.accumulate(points, expected[0], k))
    # The bits of a NaN that comes of a sum are each machine's own.
    for ours, theirs in zip(on_cpu(sums), wanted, strict=True):
        assert same_bits(np.isnan(ours), np.isnan(theirs))
        assert same_bits(ours[~np.isnan(ours)], theirs[~np.isnan(theirs)])


@pytest.mark.parametrize("nbits", NBITS)
@pytest.mark.parametrize("dim", DIMS)
def test_compress(dim: int, nbits: int, gpu: Any, rng: np.random.Generator) -> None:
    points = unit_vectors(rng, 77, dim).astype(np.float16)
    centroids = unit_vectors(rng, 50, dim)
    weights = fit_trellis(unit_vectors(rng, 200, dim), nbits)
    cutoffs = np.sort(rng.standard_normal(2**nbits - 1) / 8).astype(np.float32)
    there = gpu(points), gpu(centroids)
    buckets = ops.compress(*there, cutoffs)
    assert same_bits(on_cpu(buckets), ops.compress(points, centroids, cutoffs))
    codes, residuals, scales = ops.compress_trellis(*there, weights, nbits)
    expected = ops.compress_trellis(points, centroids, weights, nbits)
    assert same_bits(on_cpu((codes, residuals, scales)), expected)
    norms = ops.inverse_norms(codes, residuals, there[1], weights, scales=scales)
    truth = ops.inverse_norms(*expected[:2], centroids, weights, scales=expected[2])
    assert same_bits(on_cpu(norms), truth)


def test_the_callers_stream_and_graphs(gpu: Any, rng: np.random.Generator) -> None:
    import torch

    query, documents = unit_vectors(rng, 3, 16), unit_vectors(rng, DOCLENS.sum(), 16)
    arguments = gpu(query), gpu(documents), gpu(DOCLENS)
    expected = ops.maxsim(query, documents, DOCLENS)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        scores = ops.maxsim(*arguments)
    stream.synchronize()
    assert same_bits(on_cpu(scores), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scores = ops.maxsim(*arguments)
    arguments[0].neg_()
    graph.replay()
    assert same_bits(on_cpu(scores), ops.maxsim(-query, documents, DOCLENS))


@pytest.mark.parametrize("by_window", [False, True])
@pytest.mark.parametrize("nbits", NBITS)
@pytest.mark.parametrize(("nq", "dim"), PAIRS[::2])
def test_residuals(
    nq: int, dim: int, nbits: int, by_window: bool, gpu: Any, rng: np.random.Generator
) -> None:
    n, size = int(DOCLENS.sum()), 16 if by_window and nbits < 4 else 2**nbits
    query, centroids = unit_vectors(rng, nq, dim), unit_vectors(rng, 50, dim)
    codes = rng.integers(0, 50, n, dtype=np.int32)
    residuals = rng.integers(0, 256, (n, dim * nbits // 8), dtype=np.uint8)
    weights = np.sort(rng.standard_normal(size) / 8).astype(np.float32)
    scales = rng.integers(150, 200, n, dtype=np.uint8)
    norms = ops.inverse_norms(codes, residuals, centroids, weights, scales=scales)
    packed = (codes, residuals, centroids, weights)
    on_gpu = (gpu(codes), gpu(residuals), gpu(centroids), weights)
    vectors = ops.decompress(*packed, scales=scales)
    assert same_bits(on_cpu(ops.decompress(*on_gpu, scales=gpu(scales))), vectors)

    def score(precision: str) -> tuple[np.ndarray, np.ndarray]:
        c, r, *rest = packed
        gc, gr, *gpu_rest = on_gpu
        kind: Any = {"precision": precision}
        ours = ops.residual_maxsim(
            gpu(query), gc, gr, gpu(DOCLENS), *gpu_rest, **kind, scales=gpu(scales),
            inverse_norms=gpu(norms),
        )  # fmt: skip
        theirs = ops.residual_maxsim(
            query, c, r, DOCLENS, *rest, **kind, scales=scales, inverse_norms=norms
        )
        return on_cpu(ours), theirs

    assert same_bits(*score("float32"))
    if nbits == 8:
        with pytest.raises(ValueError, match="8 bits"):
            score("int8")
    else:
        assert same_bits(*score("int8"))
