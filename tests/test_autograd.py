"""Gradients of MaxSim against torch's own and against finite differences."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from support import DOCLENS, PAIRS, any_threads, every_isa, unit_vectors
from tolerances import FLOOR

torch: Any = pytest.importorskip("torch", reason="torch is an extra")

from colbert_fast.kernels import autograd, ops, torch_maxsim  # noqa: E402

OWN = len(DOCLENS) // 2
"""Documents of each of two queries."""


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Keep torch from spinning on cores that other tests use."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["kernels", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with the kernels, and with what other devices run."""
    if request.param == "torch":
        monkeypatch.setattr(autograd, "_kernels_of", lambda _: torch_maxsim)
    return str(request.param)


both_paths = pytest.mark.usefixtures("path")


def plain(query: Any, documents: Any, doclens: Any, documents_per_query: int | None = None) -> Any:
    """MaxSim by torch operations; 0 for documents without tokens."""
    blocks = torch.split(documents, doclens.tolist())
    if documents_per_query is not None:
        own = [blocks[i : i + documents_per_query] for i in range(0, len(blocks), len(blocks) // 2)]
        return torch.stack([of_blocks(*pair) for pair in zip(query, own, strict=True)])
    return of_blocks(query, blocks)


def of_blocks(query: Any, blocks: Any) -> Any:
    nothing = (query * 0).sum((-1, -2))
    scores = [(query @ block.T).amax(-1).sum(-1) if len(block) else nothing for block in blocks]
    return torch.stack(scores, -1)


def without_ties(rng: np.random.Generator, *shape: int) -> tuple[Any, Any]:
    """Query (*shape) and documents whose best tokens are the best in float32 too."""
    while True:
        query = torch.from_numpy(unit_vectors(rng, *shape))
        documents = torch.from_numpy(unit_vectors(rng, DOCLENS.sum(), shape[-1]))
        similarities = query.double() @ documents.double().T
        best = [
            block.topk(2).values
            for block in similarities.split(DOCLENS.tolist(), -1)
            if block.shape[-1] > 1
        ]
        if min((pair[..., 0] - pair[..., 1]).min() for pair in best) > 1e-6:
            return query, documents


def gradients(function: Any, upstream: Any, *inputs: Any, **options: Any) -> list[Any]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    scores = function(*leaves, torch.from_numpy(DOCLENS), **options)
    return list(torch.autograd.grad(scores, leaves, upstream))


@both_paths
@every_isa
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("own", [None, OWN])
@pytest.mark.parametrize(("nq", "dim"), PAIRS[::3])
def test_gradients_are_those_of_the_formula(
    nq: int, dim: int, own: int | None, batch: Any, rng: np.random.Generator
) -> None:
    if own is not None:
        own = OWN if batch else len(DOCLENS)
    query, documents = without_ties(rng, *batch, nq, dim)
    upstream = torch.from_numpy(rng.standard_normal((*batch, own or len(DOCLENS)), np.float32))
    options = {"documents_per_query": own if batch else None}
    ours = gradients(autograd.maxsim, upstream, query, documents, documents_per_query=own)
    truth = gradients(plain, upstream.double(), query.double(), documents.double(), **options)
    usual = gradients(plain, upstream, query, documents, **options)
    for our, true, other in zip(ours, truth, usual, strict=True):
        assert our.dtype == torch.float32
        bound = 2 * (other - true).abs().max() + nq * FLOOR["gradient"]
        assert (our - true).abs().max() <= bound


@any_threads
@every_isa
@pytest.mark.parametrize("own", [None, OWN])
def test_scores_are_those_of_the_kernel(own: int | None, rng: np.random.Generator) -> None:
    query = torch.from_numpy(unit_vectors(rng, 2, 5, 16)).requires_grad_()
    documents = torch.from_numpy(unit_vectors(rng, DOCLENS.sum(), 16))
    arguments, options = (documents, torch.from_numpy(DOCLENS)), {"documents_per_query": own}
    scores = autograd.maxsim(query, *arguments, **options)
    assert scores.requires_grad
    assert torch.equal(scores.detach(), ops.maxsim(query.detach(), *arguments, **options))


@pytest.mark.parametrize("own", [None, OWN])
def test_torch_path_does_as_the_kernels(own: int | None, rng: np.random.Generator) -> None:
    query = torch.from_numpy(unit_vectors(rng, 2, 5, 16))
    documents = torch.from_numpy(unit_vectors(rng, DOCLENS.sum(), 16)).bfloat16()
    doclens = torch.from_numpy(DOCLENS)
    theirs, ours = (
        module.maxsim(query, documents, doclens, documents_per_query=own, return_argmax=True)
        for module in (torch_maxsim, ops)
    )
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    grad = torch.from_numpy(rng.standard_normal(ours[0].shape, np.float32))
    for name, side in (("maxsim_grad_query", documents), ("maxsim_grad_documents", query)):
        theirs, mine = (
            getattr(module, name)(side, doclens, ours[1], grad) for module in (torch_maxsim, ops)
        )
        torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-5)


def test_torch_path_checks_too() -> None:
    with pytest.raises(ValueError, match="`documents_per_query`"):
        torch_maxsim.maxsim(
            torch.ones(2, 1, 8), torch.ones(3, 8), torch.ones(3).int(), documents_per_query=1
        )


@both_paths
@pytest.mark.parametrize("own", [None, OWN])
def test_only_the_argmax_is_kept(own: int | None, rng: np.random.Generator) -> None:
    query = torch.from_numpy(unit_vectors(rng, 2, 5, 16)).requires_grad_()
    documents = torch.from_numpy(unit_vectors(rng, DOCLENS.sum(), 16)).requires_grad_()
    doclens, kept = torch.from_numpy(DOCLENS), []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: None):
        autograd.maxsim(query, documents, doclens, documents_per_query=own)
    inputs = {tensor.data_ptr() for tensor in (query, documents, doclens)}
    (argmax,) = (tensor for tensor in kept if tensor.data_ptr() not in inputs)
    assert argmax.dtype == torch.int32
    assert argmax.shape == (2, own or len(DOCLENS), 5)


@both_paths
def test_finite_differences(rng: np.random.Generator) -> None:
    # MaxSim is linear in each argument as long as no maximum changes hands, so a small step along a
    # random direction is exact up to rounding.
    query, documents = unit_vectors(rng, 4, 16), unit_vectors(rng, DOCLENS.sum(), 16)
    doclens = torch.from_numpy(DOCLENS)
    for position in (0, 1):
        inputs = [torch.from_numpy(query), torch.from_numpy(documents)]
        direction = torch.from_numpy(rng.standard_normal(inputs[position].shape)) * 1e-5

        def total(sign: float, position: int = position, direction: Any = direction) -> Any:
            moved = [torch.from_numpy(query).double(), torch.from_numpy(documents).double()]
            moved[position] = moved[position] + sign * direction
            return plain(*moved, doclens).sum()

        upstream = torch.ones(len(DOCLENS))
        slope = (gradients(autograd.maxsim, upstream, *inputs)[position] * direction).sum()
        difference = (total(1) - total(-1)) / 2
        torch.testing.assert_close(slope.double(), difference, rtol=1e-4, atol=1e-8)


@every_isa
def test_documents_without_tokens_get_no_gradient(path: str) -> None:
    query, documents = torch.ones(2, 8, requires_grad=True), torch.ones(3, 8, requires_grad=True)
    scores = autograd.maxsim(query, documents, torch.tensor([0, 3, 0], dtype=torch.int32))
    scores[1].backward()
    assert torch.equal(query.grad, torch.ones(2, 8))
    assert documents.grad.sum() == 16  # on which of equal tokens is the kernel's promise only
    if path == "kernels":
        assert torch.equal(documents.grad, torch.tensor([[2.0], [0], [0]]).expand(3, 8))


@both_paths
@pytest.mark.parametrize("which", [0, 1])
def test_one_side_alone(which: int, rng: np.random.Generator) -> None:
    tensors = [torch.from_numpy(unit_vectors(rng, n, 8)) for n in (3, 6)]
    tensors[which].requires_grad_()
    autograd.maxsim(*tensors, torch.tensor([2, 4], dtype=torch.int32)).sum().backward()
    assert tensors[which].grad is not None
    assert tensors[1 - which].grad is None


@both_paths
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_have_the_type_of_their_inputs(dtype: Any, rng: np.random.Generator) -> None:
    doclens = torch.tensor([2, 4], dtype=torch.int32)
    halves = [torch.from_numpy(unit_vectors(rng, n, 8)).to(dtype).requires_grad_() for n in (3, 6)]
    autograd.maxsim(*halves, doclens).sum().backward()
    floats = [half.detach().float().requires_grad_() for half in halves]
    autograd.maxsim(*floats, doclens).sum().backward()
    for half, wide in zip(halves, floats, strict=True):
        assert half.grad.dtype == dtype
        assert torch.equal(half.grad, wide.grad.to(dtype))


@both_paths
def test_autocast(rng: np.random.Generator) -> None:
    """The projection runs in bfloat16; scores of its outputs are still exact."""
    projection = torch.nn.Linear(16, 8, bias=False)
    tokens = [torch.from_numpy(unit_vectors(rng, n, 16)) for n in (5, 6)]
    doclens = torch.tensor([2, 4], dtype=torch.int32)
    with torch.autocast("cpu", torch.bfloat16):
        query, documents = map(projection, tokens)
        scores = autograd.maxsim(query, documents, doclens)
        assert query.dtype == documents.dtype == torch.bfloat16
        assert scores.dtype == torch.float32
    expected = plain(query.float(), documents.float(), doclens)
    torch.testing.assert_close(scores, expected, rtol=1e-6, atol=1e-6)
    ours, truth = (
        torch.autograd.grad(loss.sum(), projection.weight, retain_graph=True)[0]
        for loss in (scores, expected)
    )
    torch.testing.assert_close(ours, truth, rtol=1e-2, atol=1e-2)  # summed in bfloat16 below


def test_gradients_of_gradients_are_refused() -> None:
    query, documents = torch.ones(2, 8, requires_grad=True), torch.ones(3, 8)
    scores = autograd.maxsim(query, documents, torch.tensor([3], dtype=torch.int32))
    with pytest.raises(RuntimeError, match="maxsim has no second derivative"):
        torch.autograd.grad(scores.sum(), query, create_graph=True)


def test_ops_maxsim_keeps_gradients() -> None:
    query = torch.randn(2, 3, 8, requires_grad=True)
    documents, doclens = torch.randn(5, 8), torch.tensor([2, 3], dtype=torch.int32)
    for options in ({}, {"documents_per_query": 1}):
        scores = ops.maxsim(query, documents, doclens, **options)
        assert torch.equal(scores, autograd.maxsim(query, documents, doclens, **options))
        scores.sum().backward()
        assert query.grad is not None
    with torch.no_grad():
        assert not ops.maxsim(query, documents, doclens).requires_grad
    with pytest.raises(ValueError, match="return_argmax"):
        ops.maxsim(query, documents, doclens, return_argmax=True)


def test_ops_maxsim_refuses_the_same_with_and_without_gradients() -> None:
    documents, doclens = torch.randn(5, 8, requires_grad=True), torch.tensor([5], dtype=torch.int32)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            with pytest.raises(TypeError, match="`query` must be float32, got float16"):
                ops.maxsim(torch.ones(3, 8).half(), documents, doclens)
            with pytest.raises(ValueError, match="`query` must have 2 or 3 dimensions, got"):
                ops.maxsim(torch.ones(8), documents, doclens)
    with pytest.raises(TypeError, match="`query` must be a torch tensor for a gradient, got ndarr"):
        ops.maxsim(np.ones((3, 8), np.float32), documents, doclens)
    with pytest.raises(TypeError, match="`doclens` must be a torch tensor for a gradient, got nd"):
        ops.maxsim(torch.ones(3, 8), documents, doclens.numpy())


@pytest.mark.parametrize(
    ("device", "capable", "kernels"),
    [
        ("cpu", None, ops),
        ("cuda:0", [True], ops),
        ("cuda:1", [True, False], torch_maxsim),
        ("cuda:0", [], torch_maxsim),  # the driver is older than the build
        ("cuda:0", None, torch_maxsim),
        ("mps", [True], torch_maxsim),
    ],
)
def test_which_kernels_run(
    device: str, capable: list[bool] | None, kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`capable`: which GPUs a build with CUDA can run on; None is one without."""
    module = None
    if capable is not None:
        module = SimpleNamespace(device_count=lambda: len(capable), can_run=capable.__getitem__)
    monkeypatch.setattr(autograd.backend, "_cuda_module", lambda: module)
    tensor: Any = SimpleNamespace(device=torch.device(device))
    assert autograd._kernels_of(tensor) is kernels


def test_lengths_and_a_gradient_may_be_parts_of_others(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient of `cat` is, and CUDA's kernels read from multiples of 16 bytes only."""
    doclens, met = torch.tensor([9, 2, 1, 3], dtype=torch.int32)[1:], []

    def grad_query(*arguments: Any) -> Any:
        _, lengths, _, grad = arguments
        met.append((lengths.data_ptr() % 16, grad.data_ptr() % 16))
        return ops.maxsim_grad_query(*arguments)

    kernels = SimpleNamespace(maxsim=ops.maxsim, maxsim_grad_query=grad_query)
    monkeypatch.setattr(autograd, "_kernels_of", lambda _: kernels)
    query, documents = (torch.from_numpy(unit_vectors(rng, n, 8)) for n in (4, 6))
    query.requires_grad_()
    weights = torch.arange(6.0)
    parts = [autograd.maxsim(query, documents, doclens) for _ in range(2)]
    (torch.cat(parts) * weights).sum().backward()
    assert doclens.data_ptr() % 16
    assert met == [(0, 0), (0, 0)]
    once = query.detach().clone().requires_grad_()
    (autograd.maxsim(once, documents, doclens) * (weights[:3] + weights[3:])).sum().backward()
    torch.testing.assert_close(query.grad, once.grad)


@pytest.mark.parametrize("own", [None, OWN])
def test_torch_finds_nothing_wrong_with_the_operation(own: int | None) -> None:
    query, documents = torch.randn(2, 3, 16), torch.randn(int(DOCLENS.sum()), 16)
    doclens, kernels = torch.from_numpy(DOCLENS), torch.ops.colbert_fast
    leaves = query.clone().requires_grad_(), documents.clone().requires_grad_()
    torch.library.opcheck(kernels.maxsim.default, (*leaves, doclens, own))
    scores, argmax = kernels.maxsim(query, documents, doclens, own)
    met = doclens, argmax, torch.randn_like(scores)
    torch.library.opcheck(kernels.maxsim_grad_query.default, (documents, *met))
    torch.library.opcheck(kernels.maxsim_grad_documents.default, (query, len(documents), *met))


def test_compiled_in_one_graph(rng: np.random.Generator) -> None:
    doclens = torch.from_numpy(DOCLENS)

    def loss(query: Any, documents: Any) -> Any:
        scores = autograd.maxsim(torch.nn.functional.normalize(query, dim=-1), documents, doclens)
        return scores.nan_to_num(neginf=0.0).logsumexp(-1).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    leaves = [
        torch.from_numpy(rows).requires_grad_()
        for rows in (unit_vectors(rng, 2, 3, 16), unit_vectors(rng, DOCLENS.sum(), 16))
    ]
    ours, eager = compiled(*leaves), loss(*leaves)
    assert torch.equal(ours, eager)
    for left, right in zip(*(torch.autograd.grad(x, leaves) for x in (ours, eager)), strict=True):
        assert torch.equal(left, right)


def test_compiled_once_for_any_lengths() -> None:
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph)

    compiled = torch.compile(
        autograd.maxsim, fullgraph=True, dynamic=True, backend=aot_autograd(fw_compiler=backend)
    )
    for lengths in ([3, 4, 5], [5, 1, 6, 1], [2, 2, 2, 9, 1]):  # no size is another's at first
        doclens = torch.tensor(lengths, dtype=torch.int32)
        query, documents = torch.randn(2, 7, 16), torch.randn(int(doclens.sum()), 16)
        leaves = query.requires_grad_(), documents.requires_grad_()
        ours, eager = (f(*leaves, doclens).sum() for f in (compiled, autograd.maxsim))
        grads = [torch.autograd.grad(each, leaves) for each in (ours, eager)]
        assert all(map(torch.equal, *grads))
    assert len(graphs) == 2  # forward and backward


def test_autocast_on_cuda_is_for_tensor_cores() -> None:
    """Without a GPU: shapes and types only."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.colbert_fast.maxsim.default:
                seen.extend((tensor.device.type, tensor.dtype) for tensor in args[:3])
            return func(*args, **(kwargs or {}))

    with FakeTensorMode(), Watch():
        query, documents = (torch.ones(*n, 16, device="cuda") for n in ((2, 3), (5,)))
        torch.set_autocast_enabled("cuda", True)
        try:
            scores = autograd.maxsim(query, documents, torch.tensor([2, 3], dtype=torch.int32))
        finally:
            torch.set_autocast_enabled("cuda", False)
    assert (scores.shape, scores.dtype, scores.device.type) == ((2, 2), torch.float32, "cuda")
    types = [torch.get_autocast_dtype("cuda")] * 2 + [torch.int32]
    assert seen == [("cuda", dtype) for dtype in types]
