"""MaxSim for training: of what it computes on the way, only the argmax is kept for the backward.

CPU tensors run the kernels of `ops`: the same bits whatever the threads. Tensors on another device
run `torch_maxsim`. The device of the inputs decides, nothing else.
"""

from __future__ import annotations

from typing import Any

import torch

from colbert_fast.kernels import ops, torch_maxsim

__all__ = ["maxsim"]


def _kernels_of(tensor: torch.Tensor) -> Any:
    return ops if tensor.device.type == "cpu" else torch_maxsim


class _MaxSim(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        documents: torch.Tensor,
        doclens: torch.Tensor,
        documents_per_query: int | None,
    ) -> torch.Tensor:
        scores: torch.Tensor
        doclens = doclens.to(query.device)
        scores, argmax = _kernels_of(query).maxsim(
            query, documents, doclens, documents_per_query=documents_per_query, return_argmax=True
        )
        ctx.save_for_backward(query, documents, doclens, argmax)
        return scores

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: the graph would lack this operation
            raise RuntimeError("maxsim has no second derivative: its gradient is for one backward")
        query, documents, doclens, argmax = ctx.saved_tensors
        kernels = _kernels_of(query)
        met = (doclens, argmax, grad.contiguous())
        grad_query = grad_documents = None
        if ctx.needs_input_grad[0]:
            grad_query = kernels.maxsim_grad_query(documents, *met)
        if ctx.needs_input_grad[1]:
            grad_documents = kernels.maxsim_grad_documents(query, *met).to(documents.dtype)
        return grad_query, grad_documents, None, None


def maxsim(
    query: torch.Tensor,
    documents: torch.Tensor,
    doclens: torch.Tensor,
    *,
    documents_per_query: int | None = None,
) -> torch.Tensor:
    """`ops.maxsim` with gradients: each query token's gradient flows to the document token it met.

    Gradients are sums in float32, rounded to the type of the input that they are for. They have no
    gradients of their own: a backward with ``create_graph=True`` is a RuntimeError.

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
    if query.dtype in (torch.float16, torch.bfloat16):
        query = query.float()  # exact
    scores: torch.Tensor = _MaxSim.apply(query, documents, doclens, documents_per_query)  # type: ignore[no-untyped-call]
    return scores
