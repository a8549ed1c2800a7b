"""Examples become batches: token ids in passes of little padding, rows in the examples' order."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from colbert_fast.model import ColBERT
from colbert_fast.model.tokenizer import Tokenizer

__all__ = ["Batches", "Collator", "Encoder", "ExampleLike", "Pass", "TrainingBatch"]


class ExampleLike(Protocol):
    """What a training example has; `colbert_fast.training.data.Example` does."""

    @property
    def query(self) -> str: ...
    @property
    def documents(self) -> Sequence[str]: ...
    @property
    def scores(self) -> Sequence[float] | None: ...


class Pass(NamedTuple):
    """Texts of about one length, for one forward pass of the backbone.

    `input_ids` and `attention_mask` are int64 (texts, length); `kept` int64 (n,) are the places of
    the rows that are embeddings, counted over texts * length.
    """

    input_ids: Tensor
    attention_mask: Tensor
    kept: Tensor


@dataclass(frozen=True)
class TrainingBatch:
    """b queries with n documents each, tokenised.

    Attributes
    ----------
    queries : tuple of Pass
        In order, all of one length nq.
    query_keep : bool (b, nq)
        False for padding, which only queries without expansion have.
    documents : tuple of Pass
        Longest first.
    order : int64 (n_tokens,)
        Which of the passes' kept rows, one pass behind the other, comes where: documents in the
        examples' order.
    doclens : int32 (b * n,), summing to n_tokens
    teacher : float32 (b, n), optional
        The teacher's scores.
    texts : int64 (b,) and int64 (b * n,)
        A number for each query's and document's text, the same in every process.
    """

    queries: tuple[Pass, ...]
    query_keep: Tensor
    documents: tuple[Pass, ...]
    order: Tensor
    doclens: Tensor
    teacher: Tensor | None
    texts: tuple[Tensor, Tensor]

    def to(self, device: torch.device) -> TrainingBatch:
        """The batch on a device; doclens, which kernels read on the host too, go along."""
        return replace(
            self, **{item.name: _to(getattr(self, item.name), device) for item in fields(self)}
        )


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Pass):
        return Pass(*(_to(tensor, device) for tensor in value))
    return tuple(_to(item, device) for item in value) if isinstance(value, tuple) else value


class Collator:
    """Tokenises examples into a TrainingBatch.

    Parameters
    ----------
    tokenizer : Tokenizer
    tokens_per_pass : int
        Most tokens of a pass, padding included; a single longer text is a pass of its own.
    texts_per_pass : int, optional
        Most texts of a pass.
    nway : int
        Documents per query.
    truncate : bool
        Take the first `nway` documents of an example with more, which is an error otherwise.
    needs_scores : bool
        Whether an example without a teacher's scores is an error.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        tokens_per_pass: int,
        texts_per_pass: int | None = None,
        nway: int,
        truncate: bool = False,
        needs_scores: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.tokens_per_pass = tokens_per_pass
        self.texts_per_pass = texts_per_pass
        self.nway = nway
        self.truncate = truncate
        self.needs_scores = needs_scores

    def __call__(self, examples: Sequence[ExampleLike]) -> dict[str, TrainingBatch]:
        """`collate`, in a dict as transformers.Trainer wants it."""
        return {"batch": self.collate(examples)}

    def collate(self, examples: Sequence[ExampleLike]) -> TrainingBatch:
        """b examples to a batch; ValueError for one that the others or the loss do not go with."""
        for example in examples:
            self._check(example)
        texts = [text for example in examples for text in example.documents[: self.nway]]
        asked = [example.query for example in examples]
        queries, query_keep = self._queries(asked)
        documents, order, doclens = self._documents(texts)
        teacher, numbers = self._teacher(examples), (_numbers(asked), _numbers(texts))
        return TrainingBatch(queries, query_keep, documents, order, doclens, teacher, numbers)

    def _check(self, example: ExampleLike) -> None:
        name = _name(example)
        count = len(example.documents)
        if count < self.nway or (count > self.nway and not self.truncate):
            wanted = f"at least {self.nway}" if self.truncate else f"{self.nway}"
            raise ValueError(f"{name}: {count} documents; want {wanted} (nway)")
        if example.scores is None and self.needs_scores:
            raise ValueError(f"{name}: no teacher's scores, which the losses need")
        if example.scores is not None and len(example.scores) != count:
            raise ValueError(f"{name}: {len(example.scores)} scores for {count} documents")
        if example.scores is not None and not all(map(math.isfinite, example.scores)):
            raise ValueError(f"{name}: want finite scores, got {[*example.scores]}")

    def _teacher(self, examples: Sequence[ExampleLike]) -> Tensor | None:
        if not self.needs_scores:
            return None
        scores = [list(example.scores or ())[: self.nway] for example in examples]
        return torch.tensor(scores, dtype=torch.float32)

    def _queries(self, texts: Sequence[str]) -> tuple[tuple[Pass, ...], Tensor]:
        batch = self.tokenizer.batch_queries(self.tokenizer.tokenize_queries(texts))
        size = self._size(batch.input_ids.shape[1])
        passes = []
        for start in range(0, len(texts), size):
            chosen = slice(start, start + size)
            ids = torch.from_numpy(batch.input_ids[chosen])
            mask = torch.from_numpy(batch.attention_mask[chosen])
            passes.append(Pass(ids, mask, torch.arange(ids.numel())))
        return tuple(passes), torch.from_numpy(batch.keep)

    def _documents(self, texts: Sequence[str]) -> tuple[tuple[Pass, ...], Tensor, Tensor]:
        # A document of several queries is encoded once; its rows are then copied to each.
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        which = np.array([place[text] for text in texts])
        ids = self.tokenizer.tokenize_documents(list(place))
        # Longest first: running out of memory happens at once or never.
        longest_first = np.argsort([-len(row) for row in ids], kind="stable")
        doclens = np.zeros(len(ids), np.int64)
        passes, start = [], 0
        while start < len(ids):
            size = self._size(len(ids[longest_first[start]]))
            chosen = longest_first[start : start + size]
            batch = self.tokenizer.batch_documents([ids[i] for i in chosen])
            doclens[chosen] = batch.keep.sum(1)
            arrays = (batch.input_ids, batch.attention_mask, np.flatnonzero(batch.keep))
            passes.append(Pass(*map(torch.from_numpy, arrays)))
            start += size
        # Where each document's rows begin in the passes, and from there where each row is.
        begins = np.empty(len(ids), np.int64)
        begins[longest_first] = np.cumsum(doclens[longest_first]) - doclens[longest_first]
        begins, doclens = begins[which], doclens[which]
        shift = begins - (np.cumsum(doclens) - doclens)
        order = np.arange(doclens.sum()) + np.repeat(shift, doclens)
        return tuple(passes), torch.from_numpy(order), torch.from_numpy(doclens.astype(np.int32))

    def _size(self, longest: int) -> int:
        size = max(1, self.tokens_per_pass // max(1, longest))
        return min(size, self.texts_per_pass or size)


def _numbers(texts: Sequence[str]) -> Tensor:
    """int64 (n,) that tell texts apart: 64 bits of BLAKE2b."""
    digests = [
        hashlib.blake2b(each.encode("utf-8", "surrogatepass"), digest_size=8) for each in texts
    ]
    return torch.tensor([int.from_bytes(each.digest(), "little", signed=True) for each in digests])


def _name(example: ExampleLike) -> str:
    known = getattr(example, "query_id", None)
    return f"example of query {example.query!r}" if known is None else f"example {known!r}"


class Batches:
    """The examples of every step of a run: a new permutation for each pass over the data.

    A step's examples depend on nothing but `seed` and its number, so that a run can go on from any
    step; each process takes the next contiguous part of them. Groups of `group_size` consecutive
    examples stay together.
    """

    def __init__(
        self,
        examples: int,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        rank: int,
        processes: int,
        group_size: int = 1,
    ) -> None:
        self.groups = examples // group_size
        self.group_size = group_size
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.rank = rank
        self.local_size = batch_size // processes

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the numbers of this process's examples, step by step."""
        per_epoch = self.groups * self.group_size // self.batch_size
        permutation = np.empty(0, np.int64)
        for step in range(self.steps):
            epoch, number = divmod(step, per_epoch)
            if number == 0:
                groups = np.random.default_rng([self.seed, epoch]).permutation(self.groups)
                members = np.arange(self.group_size)
                permutation = (groups[:, None] * self.group_size + members).ravel()
            start = number * self.batch_size + self.rank * self.local_size
            yield permutation[start : start + self.local_size].tolist()


class Encoder(nn.Module):
    """A model on whole batches: one forward call, as DDP wants it, of several passes.

    Parameters
    ----------
    model : ColBERT
    bf16 : bool
        Autocast the backbone.
    recompute : bool
        Keep only the token vectors of a pass and run it again for its gradient, with the same
        dropout. That is gradient caching (GradCache, arXiv 2101.06983): the loss's gradient with
        respect to all token vectors is complete before the first pass runs again.
    """

    def __init__(self, model: ColBERT, *, bf16: bool = False, recompute: bool = False) -> None:
        super().__init__()
        self.model = model
        self.bf16 = bf16
        self.recompute = recompute

    def forward(self, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """A batch to queries, float32 (b, nq, dim), and document rows, float32 (n_tokens, dim).

        Rows are of unit length; a query's padding is zero, which adds nothing to a MaxSim score.
        """
        queries = torch.cat([self._rows(part) for part in batch.queries])
        queries = queries.view(*batch.query_keep.shape, -1) * batch.query_keep[:, :, None]
        rows = torch.cat([self._rows(part) for part in batch.documents])
        return queries, rows.index_select(0, batch.order)

    def _rows(self, part: Pass) -> Tensor:
        if not (self.recompute and torch.is_grad_enabled()):
            return self._forward(*part)
        rows: Tensor = checkpoint(self._forward, *part, use_reentrant=False)
        return rows

    def _forward(self, input_ids: Tensor, attention_mask: Tensor, kept: Tensor) -> Tensor:
        with torch.autocast(input_ids.device.type, torch.bfloat16, enabled=self.bf16):
            rows: Tensor = self.model(input_ids, attention_mask)
        return rows.flatten(0, 1).index_select(0, kept)
