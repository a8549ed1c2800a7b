"""MaxSim and its gradients by torch operations, for tensors where there is no kernel of ours.

The same functions as in `ops`, with tensors on any one device. One query at a time, so that no
tensor has a value for every pair of a query and a document's token. Of equal tokens torch may take
any, and on CUDA `index_add_` adds in no fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from colbert_fast.kernels.pairs import columns_of, documents_of

__all__ = ["maxsim", "maxsim_grad_documents", "maxsim_grad_query"]


def maxsim(
    query: torch.Tensor,
    documents: torch.Tensor,
    doclens: torch.Tensor,
    *,
    documents_per_query: int | None = None,
    return_argmax: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Scores float32 (b, columns), of `query` (b, nq, dim), and argmax int32 (b, columns, nq)."""
    (b, nq, dim), n_docs = query.shape, len(doclens)
    columns = columns_of(b, n_docs, documents_per_query)
    longest = max([1, *doclens.tolist()])
    tokens = torch.arange(longest, device=documents.device) < doclens[:, None]
    padded = documents.new_zeros((n_docs, longest, dim), dtype=torch.float32)
    padded[tokens] = documents.float()
    scores = query.new_empty((b, columns))
    argmax = torch.empty((b, columns, nq), dtype=torch.int32, device=query.device)
    for i, own in enumerate(documents_of(b, n_docs, columns)):
        with torch.autocast(query.device.type, enabled=False):
            similarities = query[i] @ padded[own].mT  # (columns, nq, longest)
        best, met = similarities.masked_fill_(~tokens[own, None], -torch.inf).max(-1)
        scores[i] = best.sum(-1)
        argmax[i] = torch.where(best > -torch.inf, met, -1)
    return (scores, argmax) if return_argmax else scores


def _rows(doclens: torch.Tensor, argmax: torch.Tensor) -> Iterator[torch.Tensor]:
    """Of each query the rows of the documents' tokens that it met, (columns, nq).

    One past the end where it met nothing.
    """
    (b, columns, _), n_docs = argmax.shape, len(doclens)
    starts, n = torch.cumsum(doclens, 0, dtype=torch.int64) - doclens, doclens.sum()
    for met, own in zip(argmax, documents_of(b, n_docs, columns), strict=True):
        yield torch.where(met < 0, n, met + starts[own, None])


def maxsim_grad_query(
    documents: torch.Tensor, doclens: torch.Tensor, argmax: torch.Tensor, grad: torch.Tensor
) -> torch.Tensor:
    """Gradient by the query: float32 (b, nq, dim)."""
    padded = torch.cat([documents, documents.new_zeros((1, documents.shape[1]))])
    sums = [
        (weights[:, None, None] * padded[rows].float()).sum(0)
        for weights, rows in zip(grad, _rows(doclens, argmax), strict=True)
    ]
    return torch.stack(sums)


def maxsim_grad_documents(
    query: torch.Tensor,
    doclens: torch.Tensor,
    argmax: torch.Tensor,
    grad: torch.Tensor,
    *,
    n_tokens: int | None = None,
) -> torch.Tensor:
    """Gradient by the documents: float32 (n_tokens, dim)."""
    dim = query.shape[2]
    if n_tokens is None:
        n_tokens = int(doclens.sum())
    out = query.new_zeros((n_tokens + 1, dim))
    for one, weights, rows in zip(query, grad, _rows(doclens, argmax), strict=True):
        out.index_add_(0, rows.reshape(-1), (weights[:, None, None] * one).reshape(-1, dim))
    return out[:-1]
