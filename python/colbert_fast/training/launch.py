"""One training of a recipe, in this process or in several."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch.utils.data import ConcatDataset, Dataset

from colbert_fast.model import ColBERT
from colbert_fast.training.config import TrainingConfig
from colbert_fast.training.data import Example, Texts, TrainingData, TupleFile
from colbert_fast.training.trainer import train

__all__ = ["Questions", "TrainingJob", "join", "launch"]


@dataclass(frozen=True)
class Questions:
    """Tuples of one collection, and the texts that they name."""

    tuples: Path
    queries: Texts
    documents: Texts


@dataclass(frozen=True)
class TrainingJob:
    """What `train` is called with; can be pickled.

    Attributes
    ----------
    model : Path
        What to start from.
    questions : list of Questions
        All are trained on together.
    output : Path
    config : TrainingConfig
    device : str
    progress : bool
    """

    model: Path
    questions: list[Questions]
    output: Path
    config: TrainingConfig
    device: str
    progress: bool

    def __call__(self) -> None:
        """Train, or go on with a training that was stopped."""
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        device = f"cuda:{rank}" if self.device == "cuda" else self.device
        model = ColBERT.from_pretrained(self.model, device=device)
        train(
            model,
            join(self.questions, self.config.nway),
            self.output,
            self.config,
            resume=True,
            progress=self.progress and rank == 0,
        )


def join(questions: Sequence[Questions], nway: int | None) -> Sequence[Example]:
    """The examples of all collections, one after the other; `train` shuffles them."""
    parts = (
        TrainingData(each.queries, each.documents, TupleFile(each.tuples), nway=nway)
        for each in questions
    )
    return cast("Sequence[Example]", ConcatDataset(cast("Iterable[Dataset[Example]]", parts)))


def launch(job: TrainingJob, processes: int) -> None:
    """Run a training, in `processes` processes of this machine as ``torchrun`` starts them."""
    if processes == 1:
        job()
        return
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    elastic_launch(config, job)()
