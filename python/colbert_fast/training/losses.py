"""Losses on MaxSim scores: pure functions of tensors, each the mean over the queries.

`scores` (b, n) are a query's with its own n documents, the positive first where there is one.
`all_scores` (b, n_queries * n) are with every document of the batch: query i of the whole batch
owns columns ``i * n`` to ``i * n + n - 1``. Where a batch is spread over processes, each passes the
rows of its own queries with the documents of all, and as `offset` the number of its first query.
Where queries of a batch share positives, `excluded` (b, n_queries * n) says which documents count
neither as positive nor as negative: a query's positives in the columns of others.

Scores are float32 or float64; half precision holds too little for differences of sums over query
tokens, and is a TypeError. Teacher scores are constants.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

__all__ = [
    "contrastive",
    "in_batch_cross_entropy",
    "kl_divergence",
    "margin_mse",
    "pairwise_cross_entropy",
    "xtr",
    "xtr_scores",
]


def _check_scores(scores: torch.Tensor, name: str) -> None:
    if scores.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"`{name}` must be float32 or float64, got {scores.dtype}")
    if scores.dim() != 2 or scores.shape[0] < 1 or scores.shape[1] < 2:
        raise ValueError(
            f"`{name}` must have a row for each of 1 or more queries and 2 or more columns, "
            f"got shape {tuple(scores.shape)}"
        )


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"`temperature` must be positive, got {temperature!r}")


def _constant_like(scores: torch.Tensor, teacher_scores: torch.Tensor) -> torch.Tensor:
    if teacher_scores.shape != scores.shape:
        raise ValueError(
            f"`teacher_scores` must have the shape of `scores`, {tuple(scores.shape)}, "
            f"got {tuple(teacher_scores.shape)}"
        )
    return teacher_scores.detach().to(scores)


def _min_max(scores: torch.Tensor) -> torch.Tensor:
    """Each row's scores from 0 to 1; all 0 where they are equal."""
    low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
    return (scores - low) / torch.where(high > low, high - low, 1.0)


def kl_divergence(
    scores: torch.Tensor,
    teacher_scores: torch.Tensor,
    *,
    normalize: Literal["none", "minmax"] = "none",
    temperature: float = 1.0,
) -> torch.Tensor:
    """KL divergence of the student's distribution over a tuple's documents from the teacher's.

    The distillation loss of ColBERTv2 (arXiv 2112.01488, section 3.2): the mean over queries of
    ``sum(p * (log p - log q))``, p and q the softmax of the teacher's and the student's scores. Its
    code's `distillation_alpha` is a factor that the caller puts on `teacher_scores`.

    Parameters
    ----------
    scores : float32 or float64 (b, n)
    teacher_scores : (b, n)
        Logits of the teacher's softmax, so their scale matters, unless `normalize` removes it.
    normalize : "none" or "minmax"
        "minmax" maps each query's scores, of student and of teacher, to 0 to 1 before the softmax
        (JaColBERTv2.5, arXiv 2407.20750): only their order and relative distances matter.
    temperature : float
        Divides both, after `normalize`. Below 1 both distributions are sharper.

    Returns
    -------
    scalar tensor, 0 or greater
    """
    _check_scores(scores, "scores")
    _check_temperature(temperature)
    teacher_scores = _constant_like(scores, teacher_scores)
    if normalize == "minmax":
        scores, teacher_scores = _min_max(scores), _min_max(teacher_scores)
    elif normalize != "none":
        raise ValueError(f"`normalize` must be 'none' or 'minmax', got {normalize!r}")
    student = functional.log_softmax(scores / temperature, dim=1)
    teacher = functional.log_softmax(teacher_scores / temperature, dim=1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def pairwise_cross_entropy(scores: torch.Tensor) -> torch.Tensor:
    """Softmax cross-entropy of the positive in each of the n - 1 pairs with a negative.

    The loss of ColBERT (arXiv 2004.12832), whose tuples are pairs: ``log(1 + exp(negative -
    positive))``; with more negatives the mean over them.

    Parameters
    ----------
    scores : float32 or float64 (b, n), the positive first

    Returns
    -------
    scalar tensor
    """
    _check_scores(scores, "scores")
    return functional.softplus(scores[:, 1:] - scores[:, :1]).mean()


def margin_mse(scores: torch.Tensor, teacher_scores: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the student's margins (positive - negative) to the teacher's.

    Margin-MSE (arXiv 2010.02666). It asks for the teacher's scale too: margins that a sum of
    cosines cannot reach are for the caller to scale.

    Parameters
    ----------
    scores : float32 or float64 (b, n), the positive first
    teacher_scores : (b, n)

    Returns
    -------
    scalar tensor
    """
    _check_scores(scores, "scores")
    teacher_scores = _constant_like(scores, teacher_scores)
    margins = scores[:, :1] - scores[:, 1:]
    return functional.mse_loss(margins, teacher_scores[:, :1] - teacher_scores[:, 1:])


def _positives(all_scores: torch.Tensor, n: int, offset: int) -> torch.Tensor:
    """The column of each query's positive, after checks."""
    _check_scores(all_scores, "all_scores")
    rows, columns = all_scores.shape
    if n < 1 or columns % n:
        raise ValueError(f"`all_scores` must have n={n} columns per query, got {columns}")
    if not 0 <= offset <= columns // n - rows:
        raise ValueError(
            f"`offset` and the {rows} rows of `all_scores` must lie within the batch of "
            f"{columns // n} queries, got {offset}"
        )
    return (offset + torch.arange(rows, device=all_scores.device)) * n


def contrastive(
    all_scores: torch.Tensor,
    n: int,
    *,
    temperature: float = 1.0,
    offset: int = 0,
    excluded: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax cross-entropy of the own positive against every document of the batch.

    The query's own negatives count too. With n = 1 the negatives are the other queries' positives.

    Parameters
    ----------
    all_scores : float32 or float64 (b, n_queries * n), own documents' positive first
    n : int
        Documents per query.
    temperature : float
        Divides the scores.
    offset : int
        The number, within the whole batch, of the query of row 0.
    excluded : bool (b, n_queries * n), optional
        Documents to leave out; False for each query's own positive.

    Returns
    -------
    scalar tensor
    """
    _check_temperature(temperature)
    positives = _positives(all_scores, n, offset)
    return _cross_entropy(all_scores / temperature, positives, excluded)


def _cross_entropy(
    logits: torch.Tensor, positives: torch.Tensor, excluded: torch.Tensor | None
) -> torch.Tensor:
    if excluded is not None:
        logits = logits.masked_fill(excluded, -torch.inf)
    return functional.cross_entropy(logits, positives)


def in_batch_cross_entropy(
    all_scores: torch.Tensor,
    n: int,
    *,
    temperature: float = 1.0,
    offset: int = 0,
    excluded: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax cross-entropy of the own positive against all documents of the other queries.

    The in-batch negatives of ColBERTv2 (arXiv 2112.01488, section 3.2): the query's own n - 1
    negatives, whose order is `kl_divergence`'s to teach, are left out.

    Parameters and result as of `contrastive`.
    """
    _check_temperature(temperature)
    positives = _positives(all_scores, n, offset)
    behind = torch.arange(all_scores.shape[1], device=all_scores.device) - positives[:, None]
    own_negatives = (behind > 0) & (behind < n)
    logits = (all_scores / temperature).masked_fill(own_negatives, -torch.inf)
    return _cross_entropy(logits, positives, excluded)


def xtr_scores(
    query: torch.Tensor, documents: torch.Tensor, doclens: torch.Tensor, *, k: int = 256
) -> torch.Tensor:
    """Scores from retrieved tokens only, as XTR trains (arXiv 2304.01982, section 3).

    Each query token retrieves its `k` nearest of all document tokens of the batch. A document's
    score is the sum over query tokens of the best similarity to a retrieved token of its own,
    divided by the number of query tokens that retrieved one of its tokens; 0 where none did.

    Parameters
    ----------
    query : (b, nq, dim)
    documents : (n_tokens, dim)
    doclens : int32 or int64 (n_docs,), summing to n_tokens
    k : int
        At most n_tokens are taken.

    Returns
    -------
    float32 (b, n_docs); float64 for float64 inputs
    """
    if k < 1:
        raise ValueError(f"`k` must be at least 1, got {k!r}")
    n_tokens, total = len(documents), int(doclens.sum())
    if total != n_tokens:
        raise ValueError(f"`doclens` must sum to the number of tokens, {n_tokens}, got {total}")
    (b, nq, dim), n_docs = query.shape, len(doclens)
    wide = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):  # it would choose tokens in bfloat16
        similarities = query.reshape(b * nq, dim).to(wide) @ documents.to(wide).T
    values, tokens = similarities.topk(min(k, n_tokens), dim=1)
    owners = torch.repeat_interleave(torch.arange(n_docs, device=tokens.device), doclens)
    nothing = values.new_full((b * nq, n_docs), -torch.inf)
    best = nothing.scatter_reduce(1, owners[tokens], values, "amax").view(b, nq, n_docs)
    retrieved = best > -torch.inf
    return best.where(retrieved, 0.0).sum(1) / retrieved.sum(1).clamp(min=1)


def xtr(
    query: torch.Tensor,
    documents: torch.Tensor,
    doclens: torch.Tensor,
    n: int,
    *,
    k: int = 256,
    temperature: float = 1.0,
    offset: int = 0,
    excluded: torch.Tensor | None = None,
) -> torch.Tensor:
    """The token-retrieval objective of XTR: `contrastive` over `xtr_scores`.

    Parameters
    ----------
    query : (b, nq, dim)
    documents : (n_tokens, dim)
        Tokens of all documents of the batch, n documents per query in the order of the queries,
        each query's positive first.
    doclens : int32 or int64 (n_queries * n,), summing to n_tokens
    n : int
        Documents per query.
    k : int
        Document tokens that each query token retrieves.
    temperature : float
        Divides the scores, which for unit vectors lie between -1 and 1 whatever nq.
    offset : int
        The number, within the whole batch, of the first query.
    excluded : bool (b, n_queries * n), optional
        As of `contrastive`; their tokens are retrieved nevertheless.

    Returns
    -------
    scalar tensor
    """
    scores = xtr_scores(query, documents, doclens, k=k)
    return contrastive(scores, n, temperature=temperature, offset=offset, excluded=excluded)
