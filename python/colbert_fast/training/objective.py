"""From token vectors to the loss of a step: the weighted sum that a TrainingConfig names."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from colbert_fast.kernels import autograd
from colbert_fast.training import losses
from colbert_fast.training.config import TrainingConfig
from colbert_fast.training.distributed import gather_rows, rank

__all__ = ["objective"]

_GLOBAL = ("in_batch", "contrastive", "xtr")
"""Losses that score a query against the other queries' documents too."""


def objective(
    config: TrainingConfig,
    queries: Tensor,
    rows: Tensor,
    doclens: Tensor,
    teacher: Tensor | None = None,
) -> dict[str, Tensor]:
    """The losses of a batch by name, each times its weight; their sum is to be minimised.

    Parameters
    ----------
    config : TrainingConfig
    queries : float32 (b, nq, dim)
    rows : float32 (n_tokens, dim)
    doclens : int32 (b * n,), summing to n_tokens
    teacher : float32 (b, n), optional

    Returns
    -------
    dict of str to scalar
        Means over this process's queries, summed over the dimensions of `config.matryoshka`.
    """
    if teacher is not None:
        teacher = teacher * config.teacher_scale
    everything = gather_rows(rows, doclens) if set(_GLOBAL) & set(config.losses) else None
    total: dict[str, Tensor] = {}
    for dim in (*config.matryoshka, queries.shape[2]):
        part = _Scores(
            _prefix(queries, dim),
            (_prefix(rows, dim), doclens),
            everything and (_prefix(everything[0], dim), everything[1]),
        )
        for name, loss in part.losses(config, teacher):
            weighted = config.losses[name] * loss
            total[name] = total[name] + weighted if name in total else weighted
    return total


def _prefix(vectors: Tensor, dim: int) -> Tensor:
    """The first dimensions, of unit length again; zero rows stay zero."""
    if dim == vectors.shape[-1]:
        return vectors
    return functional.normalize(vectors[..., :dim], dim=-1)


class _Scores:
    """Scores of queries with their own documents, and with all if there are any others wanted."""

    def __init__(
        self,
        queries: Tensor,
        own: tuple[Tensor, Tensor],
        everything: tuple[Tensor, Tensor] | None,
    ) -> None:
        self.queries, self.everything = queries, everything
        self.n = len(own[1]) // len(queries)
        self.offset = rank() * len(queries)
        if everything is None:
            self.scores = autograd.maxsim(queries, *own, documents_per_query=self.n)
            return
        self.all_scores = autograd.maxsim(queries, *everything)
        # Own documents are among all: their scores need no second look.
        first = (self.offset + torch.arange(len(queries), device=queries.device)) * self.n
        columns = first[:, None] + torch.arange(self.n, device=queries.device)
        self.scores = self.all_scores.gather(1, columns)

    def losses(
        self, config: TrainingConfig, teacher: Tensor | None
    ) -> Iterator[tuple[str, Tensor]]:
        for name in config.losses:
            yield name, self._loss(name, config, teacher)

    def _loss(self, name: str, config: TrainingConfig, teacher: Tensor | None) -> Tensor:
        n, offset = self.n, self.offset
        if teacher is not None and name == "kl":
            normalize, temperature = config.normalize, config.temperature
            return losses.kl_divergence(
                self.scores, teacher, normalize=normalize, temperature=temperature
            )
        if teacher is not None and name == "margin_mse":
            return losses.margin_mse(self.scores, teacher)
        if name == "pairwise":
            return losses.pairwise_cross_entropy(self.scores)
        if self.everything is not None and name == "xtr":
            return losses.xtr(self.queries, *self.everything, n, offset=offset)
        if name == "contrastive":
            return losses.contrastive(self.all_scores, n, offset=offset)
        if name == "in_batch":
            return losses.in_batch_cross_entropy(self.all_scores, n, offset=offset)
        raise ValueError(f"losses: {name!r} needs the teacher's scores")
