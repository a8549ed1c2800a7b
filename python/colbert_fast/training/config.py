"""Everything that a training run can be told, checked before it starts."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from colbert_fast.kernels.ops import NBITS

__all__ = ["LOSSES", "TEACHER_LOSSES", "TrainingConfig"]

LOSSES = ("kl", "in_batch", "pairwise", "contrastive", "margin_mse", "xtr")
TEACHER_LOSSES = ("kl", "margin_mse")
"""Those that need the teacher's scores."""

_AT_LEAST: dict[str, int] = {
    "nway": 2,
    "batch_size": 1,
    "group_size": 1,
    "max_steps": 1,
    "warmup_steps": 0,
    "tokens_per_pass": 1,
    "gradient_cache": 1,
    "seed": 0,
    "workers": 0,
    "logging_steps": 1,
    "save_steps": 1,
    "eval_steps": 1,
    "average_best": 1,
    "pool_factor": 1,
    "xtr_k": 1,
}
_POSITIVE = (
    "epochs",
    "learning_rate",
    "adam_epsilon",
    "temperature",
    "contrastive_temperature",
    "teacher_scale",
)


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Losses, batch size, learning rate and schedule are by default those of ColBERTv2 (arXiv
    2112.01488). It trains for 400,000 steps on 64 documents per query, with a warm-up of 20,000:
    those are for you to ask for.

    Attributes
    ----------
    losses : mapping of str to float
        Weights of the summed losses of `training.losses`: "kl", "in_batch", "pairwise",
        "contrastive", "margin_mse", "xtr". "kl" and "margin_mse" need a teacher's scores.
    nway : int, optional
        Documents per query: the first `nway` of each example. None: all, as many in every example
        as in the first.
    batch_size : int
        Queries in a step, all processes together.
    group_size : int
        So many consecutive examples stay together, such as queries with the same documents, which
        are encoded once for all of them: see `sample_groups`.
    epochs : float
        Passes over the data; what does not fill a last batch is left out of a pass.
    max_steps : int, optional
        Steps, instead of `epochs`.
    learning_rate : float
        Of AdamW, at the end of the warm-up.
    warmup_steps : int
        Steps in which the learning rate rises linearly from 0.
    schedule : {"linear", "cosine", "constant"}
        What it does then.
    weight_decay, adam_epsilon, max_grad_norm : float
        Of AdamW; gradients are clipped at that norm, with 0 not at all.
    normalize : {"none", "minmax"}
        Of the scores in "kl": see `losses.kl_divergence`.
    temperature : float
        Of "kl", and of no other loss.
    contrastive_temperature : float
        Of "in_batch", "contrastive" and "xtr": divides the scores, which are sums over the query's
        tokens in the first two and a mean over some of them in "xtr".
    xtr_k : int
        Of "xtr": the document tokens that each query token retrieves.
    teacher_scale : float
        Factor on the teacher's scores (`distillation_alpha` in ColBERTv2's code).
    dropout : float, optional
        Of every layer that has one; by default the model's own.
    dtype : {"float32", "bfloat16", "auto"}
        With "bfloat16" the backbone runs in it (autocast); weights, rows and losses stay float32.
        "auto" is bfloat16 where the device multiplies it in hardware, else float32; a run keeps to
        what it began with, and is not resumed where "auto" is the other.
    tokens_per_pass : int, optional
        Padded tokens in one forward pass of the backbone. By default 2048 on a CPU, else 32,768.
    gradient_cache : int, optional
        Texts in one forward pass, of which only the token vectors are kept until the gradient
        arrives; the pass is then run again (GradCache, arXiv 2101.06983). A step takes a third
        longer, and memory no longer grows with the batch.
    seed : int
        Of the order of examples, dropout and everything else.
    workers : int
        Processes that read and tokenise ahead.
    frozen : tuple of str
        Patterns (as in a shell) of parameter names that are not trained, such as
        "backbone.embeddings.*".
    matryoshka : tuple of int
        Further dimensions: the losses are summed over these prefixes of the vectors too, each
        scaled to unit length (arXiv 2205.13147).
    quantization_bits : int, optional
        Document vectors are those that a codec of so many bits would give back in the last steps:
        the gradient passes through unchanged.
    quantization_fraction : float
        Share of all steps that are the last.
    pool_factor : int
        Documents are scored with pooled tokens, as an index with this `pool_factor` does.
    logging_steps : int
        Steps between two logged losses.
    tensorboard : bool
        Log to ``output_dir/runs`` for TensorBoard.
    save_steps : int, optional
        Steps between two checkpoints. None: only the model at the end is written.
    eval_folder : str, optional
        A BEIR folder that nDCG@10 is measured on, with an index built for it.
    eval_split : str
        Which of its judgements.
    eval_steps : int, optional
        Steps between two evaluations, a multiple of `save_steps`, which is the default.
    average_best : int
        The result is the mean of the weights of that many of the best checkpoints evaluated; the
        last is always evaluated.
    """

    losses: Mapping[str, float] = field(default_factory=lambda: {"kl": 1.0, "in_batch": 1.0})
    nway: int | None = None
    batch_size: int = 32
    group_size: int = 1
    epochs: float = 1.0
    max_steps: int | None = None
    learning_rate: float = 1e-5
    warmup_steps: int = 0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = 0.0
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    normalize: Literal["none", "minmax"] = "none"
    temperature: float = 1.0
    contrastive_temperature: float = 1.0
    xtr_k: int = 256
    teacher_scale: float = 1.0
    dropout: float | None = None
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    tokens_per_pass: int | None = None
    gradient_cache: int | None = None
    seed: int = 0
    workers: int = 0
    frozen: tuple[str, ...] = ()
    matryoshka: tuple[int, ...] = ()
    quantization_bits: int | None = None
    quantization_fraction: float = 0.1
    pool_factor: int = 1
    logging_steps: int = 10
    tensorboard: bool = False
    save_steps: int | None = None
    eval_folder: str | None = None
    eval_split: str = "dev"
    eval_steps: int | None = None
    average_best: int = 1

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """Make one of a recipe's keys; lists become tuples, and a key that is no field raises."""
        known = [item.name for item in fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
                raise ValueError(f"training: unknown key {key!r}{hint}")
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**given)

    def steps_per_epoch(self, examples: int) -> int:
        """Steps of a pass over so many examples, what does not fill a batch or group left out."""
        groups = examples // self.group_size
        return groups * self.group_size // self.batch_size

    def __post_init__(self) -> None:
        """Raise TypeError or ValueError naming the field that cannot be."""
        for item in fields(self):
            _check_type(item.name, getattr(self, item.name), str(item.type))
        _check_losses(self.losses)
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: want at least {least}, got {value}")
        for name in _POSITIVE:
            _check_range(name, getattr(self, name), 0 < getattr(self, name) < math.inf, "above 0")
        for name in ("weight_decay", "max_grad_norm"):
            value = getattr(self, name)
            _check_range(name, value, 0 <= value < math.inf, "0 or more")
        if self.dropout is not None:
            _check_range("dropout", self.dropout, 0 <= self.dropout < 1, "0 or more, below 1")
        share = self.quantization_fraction
        _check_range("quantization_fraction", share, 0 < share <= 1, "above 0, at most 1")
        if self.quantization_bits not in (None, *NBITS):
            raise ValueError(
                f"quantization_bits: want one of {NBITS}, got {self.quantization_bits}"
            )
        for dim in self.matryoshka:
            if dim < 8 or dim % 8:
                raise ValueError(f"matryoshka: want positive multiples of 8, got {dim}")
        self._check_groups()
        self._check_evaluation()

    def _check_groups(self) -> None:
        if self.batch_size % self.group_size:
            raise ValueError(
                f"group_size: batch_size={self.batch_size} is no multiple of {self.group_size}"
            )
        others = sorted({"in_batch", "pairwise", "contrastive", "xtr"} & set(self.losses))
        if self.group_size > 1 and others:
            raise ValueError(
                f"group_size: the losses {', '.join(others)} know one positive of a query, and the "
                "others among a group's documents would be its negatives"
            )

    def _check_evaluation(self) -> None:
        if self.eval_folder is None:
            if self.eval_steps is not None or self.average_best != 1:
                raise ValueError(
                    "eval_folder: `eval_steps` and `average_best` need a BEIR folder to evaluate on"
                )
            return
        if not Path(self.eval_folder).is_dir():
            raise ValueError(f"eval_folder: no such folder: {self.eval_folder}")
        if self.save_steps is None:
            raise ValueError("save_steps: must be given with `eval_folder`: checkpoints are judged")
        if self.eval_steps is not None and self.eval_steps % self.save_steps:
            raise ValueError(
                f"eval_steps: want a multiple of save_steps={self.save_steps}, "
                f"got {self.eval_steps}: checkpoints are judged"
            )


def _check_losses(losses: Mapping[str, float]) -> None:
    for name, weight in losses.items():
        if name not in LOSSES:
            raise ValueError(f"losses: want some of {', '.join(LOSSES)}, got {name!r}")
        if not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise ValueError(f"losses: the weight of {name!r} must be above 0, got {weight!r}")
    if not losses:
        raise ValueError(f"losses: want at least one of {', '.join(LOSSES)}")


def _check_range(name: str, value: float, good: bool, wanted: str) -> None:
    if not good:
        raise ValueError(f"{name}: want {wanted}, got {value}")


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
}


def _check_type(name: str, value: object, kind: str) -> None:
    optional = kind.endswith(" | None")
    kind = kind.removesuffix(" | None")
    if value is None and optional:
        return
    if kind.startswith("Literal"):
        options = tuple(word.strip("\"' ") for word in kind[len("Literal[") : -1].split(","))
        good, kind = value in options, " or ".join(map(repr, options))
    elif kind.startswith("Mapping"):
        good = isinstance(value, Mapping)
    elif kind.startswith("tuple"):
        (inner,) = _KINDS["str" if "str" in kind else "int"]
        good = isinstance(value, tuple) and all(type(item) is inner for item in value)
    else:
        # bool is an int in Python, but a batch size of True is a mistake.
        good = isinstance(value, _KINDS[kind]) and (kind == "bool" or not isinstance(value, bool))
    if not good:
        raise TypeError(f"{name}: want {kind}, got {type(value).__name__} {value!r}")
