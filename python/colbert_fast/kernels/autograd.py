"""MaxSim for training: `torch.ops.colbert_fast.maxsim`, of which torch knows shapes and gradients.

Of what it computes on the way, only the argmax is kept for the backward. It is one operation to
`torch.compile`, which neither looks into it nor breaks the graph at it.

Tensors run the kernels of `ops` where these run on their device, else `torch_maxsim`.
On a CPU that is the same bits whatever the threads; on a CUDA device rows of 16 bits go through the
tensor cores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from colbert_fast.kernels import backend, ops, torch_maxsim
from colbert_fast.kernels.pairs import columns_of

__all__ = ["maxsim"]

_MAXSIM = "colbert_fast::maxsim"
_GRAD_QUERY = "colbert_fast::maxsim_grad_query"
_GRAD_DOCUMENTS = "colbert_fast::maxsim_grad_documents"

torch.library.define(
    _MAXSIM,
    "(Tensor query, Tensor documents, Tensor doclens, SymInt? documents_per_query)"
    " -> (Tensor scores, Tensor argmax)",
)
torch.library.define(
    _GRAD_QUERY, "(Tensor documents, Tensor doclens, Tensor argmax, Tensor grad) -> Tensor"
)
torch.library.define(
    _GRAD_DOCUMENTS,
    "(Tensor query, SymInt n_tokens, Tensor doclens, Tensor argmax, Tensor grad) -> Tensor",
)


def _kernels_of(tensor: Tensor) -> Any:
    device = tensor.device
    there = device.type == "cpu" or (device.type == "cuda" and backend.runs_on(device.index))
    return ops if there else torch_maxsim


def _for_tensor_cores(query: Tensor, documents: Tensor) -> bool:
    if not query.is_cuda or _kernels_of(query) is not ops:
        return False
    narrow = query.dtype in (torch.float16, torch.bfloat16) and query.dtype == documents.dtype
    return narrow and query.shape[-1] <= backend.cuda().max_mma_dim


def _aligned(part: Tensor) -> Tensor:
    """CUDA's kernels want starts at multiples of 16 bytes, which a slice need not have."""
    return part.clone() if part.data_ptr() % 16 else part


def _maxsim(
    query: Tensor, documents: Tensor, doclens: Tensor, documents_per_query: int | None
) -> tuple[Tensor, Tensor]:
    if not _for_tensor_cores(query, documents):
        query = query.float()  # exact
    scores, argmax = _kernels_of(query).maxsim(
        query,
        documents,
        _aligned(doclens),
        documents_per_query=documents_per_query,
        return_argmax=True,
    )
    return scores, argmax


def _grad_query(documents: Tensor, doclens: Tensor, argmax: Tensor, grad: Tensor) -> Tensor:
    sums: Tensor = _kernels_of(documents).maxsim_grad_query(
        documents, _aligned(doclens), argmax, _aligned(grad.contiguous())
    )
    return sums


def _grad_documents(
    query: Tensor, n_tokens: int, doclens: Tensor, argmax: Tensor, grad: Tensor
) -> Tensor:
    sums: Tensor = _kernels_of(query).maxsim_grad_documents(
        query.float(), _aligned(doclens), argmax, _aligned(grad.contiguous()), n_tokens=n_tokens
    )
    return sums


def _maxsim_shapes(
    query: Tensor, _documents: Tensor, doclens: Tensor, documents_per_query: int | None
) -> tuple[Tensor, Tensor]:
    b, nq, _ = query.shape
    columns = columns_of(b, doclens.shape[0], documents_per_query)
    scores = query.new_empty((b, columns), dtype=torch.float32)
    return scores, query.new_empty((b, columns, nq), dtype=torch.int32)


def _grad_query_shape(documents: Tensor, _doclens: Tensor, argmax: Tensor, _grad: Tensor) -> Tensor:
    b, _, nq = argmax.shape
    return documents.new_empty((b, nq, documents.shape[1]), dtype=torch.float32)


def _grad_documents_shape(query: Tensor, n_tokens: int, *_met: Tensor) -> Tensor:
    return query.new_empty((n_tokens, query.shape[2]), dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, documents, doclens, _ = inputs
    ctx.set_materialize_grads(False)  # or the argmax would get one, of zeros
    ctx.save_for_backward(query, documents, doclens, output[1])


def _backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # create_graph=True: the graph would lack this operation
        raise RuntimeError("maxsim has no second derivative: its gradient is for one backward")
    query, documents, doclens, argmax = ctx.saved_tensors
    kernels, met = torch.ops.colbert_fast, (doclens, argmax, grad)
    by_query = by_documents = None
    if ctx.needs_input_grad[0]:
        by_query = kernels.maxsim_grad_query(documents, *met).to(query.dtype)
    if ctx.needs_input_grad[1]:
        by_documents = kernels.maxsim_grad_documents(query, documents.shape[0], *met)
        by_documents = by_documents.to(documents.dtype)
    return by_query, by_documents, None, None


torch.library.impl(_MAXSIM, "default", _maxsim)
torch.library.register_fake(_MAXSIM, _maxsim_shapes)
torch.library.register_autograd(_MAXSIM, _backward, setup_context=_keep)
torch.library.impl(_GRAD_QUERY, "default", _grad_query)
torch.library.register_fake(_GRAD_QUERY, _grad_query_shape)
torch.library.impl(_GRAD_DOCUMENTS, "default", _grad_documents)
torch.library.register_fake(_GRAD_DOCUMENTS, _grad_documents_shape)


def maxsim(
    query: Tensor,
    documents: Tensor,
    doclens: Tensor,
    *,
    documents_per_query: int | None = None,
) -> Tensor:
    """`ops.maxsim` with gradients: each query token's gradient flows to the document token it met.

    Gradients are sums in float32, rounded to the type of the input that they are for. They have no
    gradients of their own: a backward with ``create_graph=True`` is a RuntimeError.

    Under autocast on a CUDA device rows are rounded to its type, as those of a matrix product are,
    for the tensor cores. On a CPU, where that would save nothing, they are taken as they come.

    Parameters
    ----------
    query : float32, float16 or bfloat16 (nq, dim) or (b, nq, dim)
    documents : float32, float16 or bfloat16 (n_tokens, dim)
        On the device of the query.
    doclens : int32 (n_docs,), summing to n_tokens
    documents_per_query : int, optional
        Score query i with its own documents only, ``i * documents_per_query`` and the next ones:
        ``b * documents_per_query`` must be n_docs. Every query with every document by default.

    Returns
    -------
    float32 (n_docs,) or (b, n_docs); (b, documents_per_query) if that was given
    """
    if query.dim() == 2:
        return maxsim(query[None], documents, doclens, documents_per_query=documents_per_query)[0]
    if query.is_cuda and torch.is_autocast_enabled("cuda"):
        narrow = torch.get_autocast_dtype("cuda")
        query, documents = query.to(narrow), documents.to(narrow)
    scores: Tensor
    scores, _ = torch.ops.colbert_fast.maxsim(
        query, documents, doclens.to(query.device), documents_per_query
    )
    return scores
