"""From token vectors to the loss of a step: the weighted sum that a TrainingConfig names."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from colbert_fast.kernels import autograd
from colbert_fast.training import losses
from colbert_fast.training.config import TrainingConfig
from colbert_fast.training.distributed import gather, gather_rows, rank

__all__ = ["objective"]

_ALL_SCORES = ("in_batch", "contrastive")
"""Losses of MaxSim scores with the other queries' documents too."""
_GLOBAL = (*_ALL_SCORES, "xtr")
"""Losses that see the other queries' documents."""


def objective(
    config: TrainingConfig,
    queries: Tensor,
    rows: Tensor,
    doclens: Tensor,
    teacher: Tensor | None = None,
    texts: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The losses of a batch by name, each times its weight; their sum is to be minimised.

    Parameters
    ----------
    config : TrainingConfig
    queries : float32 (b, nq, dim)
    rows : float32 (n_tokens, dim)
    doclens : int32 (b * n,), summing to n_tokens
    teacher : float32 (b, n), optional
    texts : int64 (b,) and int64 (b * n,), optional
        A number for each query's and document's text, by which a query's positives are known where
        other queries of the batch have them: those are none of its negatives.

    Returns
    -------
    dict of str to scalar
        Means over this process's queries, summed over the dimensions of `config.matryoshka`.
    """
    if teacher is not None:
        teacher = teacher * config.teacher_scale
    everything = excluded = None
    if set(_GLOBAL) & set(config.losses):
        everything = gather_rows(rows, doclens)
        excluded = None if texts is None else _others_positives(*texts)
    total: dict[str, Tensor] = {}
    for dim in (*config.matryoshka, queries.shape[2]):
        part = _Losses(
            config,
            _prefix(queries, dim),
            (_prefix(rows, dim), doclens),
            everything and (_prefix(everything[0], dim), everything[1]),
            teacher,
            excluded,
        )
        for name, weight in config.losses.items():
            weighted = weight * part.loss(name)
            total[name] = total[name] + weighted if name in total else weighted
    return total


def _others_positives(queries: Tensor, documents: Tensor) -> Tensor:
    """Which of all documents are a query's positives, but for its own, bool (b, all documents)."""
    b, n = len(queries), len(documents) // len(queries)
    documents = gather(documents)
    # (b, all queries) and (all queries, all documents): a query may have several tuples.
    same_query = queries[:, None] == gather(queries)
    positive_of = documents[::n, None] == documents
    found = same_query.float() @ positive_of.float() > 0
    own = torch.arange(b, device=queries.device)
    found[own, (rank() * b + own) * n] = False
    return found


def _prefix(vectors: Tensor, dim: int) -> Tensor:
    """The first dimensions, of unit length again; zero rows stay zero."""
    if dim == vectors.shape[-1]:
        return vectors
    return functional.normalize(vectors[..., :dim], dim=-1)


class _Losses:
    """The losses of queries with their own documents and, where a loss wants them, with all."""

    def __init__(
        self,
        config: TrainingConfig,
        queries: Tensor,
        own: tuple[Tensor, Tensor],
        everything: tuple[Tensor, Tensor] | None,
        teacher: Tensor | None,
        excluded: Tensor | None,
    ) -> None:
        self.config, self.teacher, self.excluded = config, teacher, excluded
        self.queries, self.own, self.everything = queries, own, everything
        self.n = len(own[1]) // len(queries)
        self.offset = rank() * len(queries)

    @cached_property
    def all_scores(self) -> Tensor:
        """MaxSim scores with every document, (b, processes * b * n)."""
        assert self.everything is not None  # `objective` gathered them
        return autograd.maxsim(self.queries, *self.everything)

    @cached_property
    def scores(self) -> Tensor:
        """MaxSim scores with the own documents, (b, n)."""
        if not set(_ALL_SCORES) & set(self.config.losses):
            return autograd.maxsim(self.queries, *self.own, documents_per_query=self.n)
        # Own documents are among all: their scores need no second look.
        b, device = len(self.queries), self.queries.device
        first = (self.offset + torch.arange(b, device=device)) * self.n
        columns = first[:, None] + torch.arange(self.n, device=device)
        return self.all_scores.gather(1, columns)

    def loss(self, name: str) -> Tensor:
        """One of LOSSES."""
        config, n = self.config, self.n
        if self.teacher is not None and name == "kl":
            normalize, temperature = config.normalize, config.temperature
            return losses.kl_divergence(
                self.scores, self.teacher, normalize=normalize, temperature=temperature
            )
        if self.teacher is not None and name == "margin_mse":
            return losses.margin_mse(self.scores, self.teacher)
        if name == "pairwise":
            return losses.pairwise_cross_entropy(self.scores)
        if name in ("kl", "margin_mse"):
            raise ValueError(f"losses: {name!r} needs the teacher's scores")
        options: dict[str, Any] = {
            "temperature": config.contrastive_temperature,
            "offset": self.offset,
            "excluded": self.excluded,
        }
        if self.everything is not None and name == "xtr":
            return losses.xtr(self.queries, *self.everything, n, k=config.xtr_k, **options)
        of = losses.contrastive if name == "contrastive" else losses.in_batch_cross_entropy
        return of(self.all_scores, n, **options)
