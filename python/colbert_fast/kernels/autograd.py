"""MaxSim for training: the kernel forward, its argmax saved, a scatter backward."""

from __future__ import annotations

from typing import Any

import torch

from colbert_fast.kernels import ops

__all__ = ["maxsim"]


class _MaxSim(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, documents: torch.Tensor, doclens: torch.Tensor
    ) -> torch.Tensor:
        scores: torch.Tensor
        scores, argmax = ops.maxsim(query, documents, doclens, return_argmax=True)
        starts = torch.cumsum(doclens, 0, dtype=torch.int64) - doclens
        # Rows of `documents`; a document without tokens points one past the end, at a row of zeros.
        rows = torch.where(argmax < 0, len(documents), argmax + starts[None, :, None])
        ctx.save_for_backward(query, documents, rows)
        return scores

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        query, documents, rows = ctx.saved_tensors
        n, dim = documents.shape
        zero = documents.new_zeros((1, dim))
        grad_query = grad_documents = None
        if ctx.needs_input_grad[0]:
            met = torch.cat([documents, zero])[rows].float()  # (b, n_docs, nq, dim)
            grad_query = torch.einsum("bc,bcqd->bqd", grad, met)
        if ctx.needs_input_grad[1]:
            flow = grad[:, :, None, None] * query[:, None]  # (b, n_docs, nq, dim)
            into = query.new_zeros((n + 1, dim))
            into.index_add_(0, rows.reshape(-1), flow.expand(*rows.shape, dim).reshape(-1, dim))
            grad_documents = into[:n].to(documents.dtype)
        return grad_query, grad_documents, None


def maxsim(query: torch.Tensor, documents: torch.Tensor, doclens: torch.Tensor) -> torch.Tensor:
    """`ops.maxsim` with gradients: each query token's gradient flows to the document token it met.

    Parameters
    ----------
    query : float32 (nq, dim) or (b, nq, dim)
    documents : float32, float16 or bfloat16 (n_tokens, dim)
    doclens : int32 (n_docs,), summing to n_tokens

    Returns
    -------
    float32 (n_docs,) or (b, n_docs)
    """
    if query.dim() == 2:
        return maxsim(query[None], documents, doclens)[0]
    scores: torch.Tensor = _MaxSim.apply(query, documents, doclens)  # type: ignore[no-untyped-call]
    return scores
