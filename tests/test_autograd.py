"""Gradients of MaxSim against torch's own and against finite differences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from support import DOCLENS, PAIRS, any_threads, every_isa, unit_vectors
from tolerances import FLOOR

torch: Any = pytest.importorskip("torch", reason="torch is an extra")

from colbert_fast.kernels import autograd, ops  # noqa: E402

FILLED = torch.from_numpy(DOCLENS > 0)


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Keep torch from spinning on cores that other tests use."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plain(query: Any, documents: Any, doclens: Any) -> Any:
    """MaxSim by torch operations, documents without tokens left out."""
    blocks = [block for block in torch.split(documents, doclens.tolist()) if len(block)]
    return torch.stack([(query @ block.T).amax(-1).sum(-1) for block in blocks], -1)


def gradients(function: Any, upstream: Any, *inputs: Any) -> list[Any]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    scores = function(*leaves, torch.from_numpy(DOCLENS))
    scores = scores[..., FILLED] if scores.shape[-1] == len(FILLED) else scores
    return list(torch.autograd.grad(scores, leaves, upstream))


@every_isa
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize(("nq", "dim"), PAIRS[::3])
def test_gradients_are_those_of_the_formula(
    nq: int, dim: int, batch: Any, rng: np.random.Generator
) -> None:
    query = torch.from_numpy(unit_vectors(rng, *batch, nq, dim))
    documents = torch.from_numpy(unit_vectors(rng, DOCLENS.sum(), dim))
    upstream = torch.from_numpy(rng.standard_normal((*batch, int(FILLED.sum()))).astype(np.float32))
    ours = gradients(autograd.maxsim, upstream, query, documents)
    truth = gradients(plain, upstream.double(), query.double(), documents.double())
    usual = gradients(plain, upstream, query, documents)
    for our, true, other in zip(ours, truth, usual, strict=True):
        assert our.dtype == torch.float32
        bound = 2 * (other - true).abs().max() + nq * FLOOR["gradient"]
        assert (our - true).abs().max() <= bound


@any_threads
@every_isa
def test_scores_are_those_of_the_kernel(rng: np.random.Generator) -> None:
    query = torch.from_numpy(unit_vectors(rng, 5, 16)).requires_grad_()
    documents = torch.from_numpy(unit_vectors(rng, DOCLENS.sum(), 16))
    doclens = torch.from_numpy(DOCLENS)
    scores = autograd.maxsim(query, documents, doclens)
    assert scores.requires_grad
    assert torch.equal(scores.detach(), ops.maxsim(query.detach(), documents, doclens))


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

        upstream = torch.ones(int(FILLED.sum()))
        slope = (gradients(autograd.maxsim, upstream, *inputs)[position] * direction).sum()
        difference = (total(1) - total(-1)) / 2
        torch.testing.assert_close(slope.double(), difference, rtol=1e-4, atol=1e-8)


@every_isa
def test_documents_without_tokens_get_no_gradient() -> None:
    query, documents = torch.ones(2, 8, requires_grad=True), torch.ones(3, 8, requires_grad=True)
    scores = autograd.maxsim(query, documents, torch.tensor([0, 3, 0], dtype=torch.int32))
    scores[1].backward()
    assert torch.equal(query.grad, torch.ones(2, 8))
    assert torch.equal(documents.grad, torch.tensor([[2.0], [0], [0]]).expand(3, 8))


@pytest.mark.parametrize("which", [0, 1])
def test_one_side_alone(which: int, rng: np.random.Generator) -> None:
    tensors = [torch.from_numpy(unit_vectors(rng, n, 8)) for n in (3, 6)]
    tensors[which].requires_grad_()
    autograd.maxsim(*tensors, torch.tensor([2, 4], dtype=torch.int32)).sum().backward()
    assert tensors[which].grad is not None
    assert tensors[1 - which].grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_have_the_type_of_the_documents(dtype: Any, rng: np.random.Generator) -> None:
    query = torch.from_numpy(unit_vectors(rng, 3, 8)).requires_grad_()
    documents = torch.from_numpy(unit_vectors(rng, 6, 8)).to(dtype).requires_grad_()
    autograd.maxsim(query, documents, torch.tensor([2, 4], dtype=torch.int32)).sum().backward()
    assert documents.grad.dtype == dtype
    assert query.grad.dtype == torch.float32


def test_ops_maxsim_keeps_gradients() -> None:
    query = torch.randn(3, 8, requires_grad=True)
    documents, doclens = torch.randn(5, 8), torch.tensor([2, 3], dtype=torch.int32)
    ops.maxsim(query, documents, doclens).sum().backward()
    assert query.grad is not None
    with torch.no_grad():
        assert not ops.maxsim(query, documents, doclens).requires_grad
    with pytest.raises(ValueError, match="return_argmax"):
        ops.maxsim(query, documents, doclens, return_argmax=True)
