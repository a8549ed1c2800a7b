"""One training of a recipe, in this process or in several."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch.utils.data import ConcatDataset, Dataset

from colbert_fast.errors import CheckpointError, UnknownDocumentError
from colbert_fast.model import ColBERT
from colbert_fast.training.config import TrainingConfig
from colbert_fast.training.data import Example, Texts, TrainingData, TupleFile
from colbert_fast.training.trainer import train

__all__ = ["Questions", "TrainingJob", "join", "launch"]


_ERRORS = (ValueError, TypeError, OSError, FileNotFoundError, TimeoutError, FloatingPointError)
_MENDABLE = {each.__name__: each for each in (*_ERRORS, CheckpointError, UnknownDocumentError)}
"""What a process may raise that says what to do; anything else is reported with all it has."""


@dataclass(frozen=True)
class Questions:
    """Tuples of one collection, and the texts that they name."""

    tuples: Path
    queries: Texts
    documents: Texts


@dataclass(frozen=True)
class TrainingJob:
    """What `run` trains; can be pickled.

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


def run(job: TrainingJob) -> None:
    """Train, or go on with a training that was stopped."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = f"cuda:{rank}" if job.device == "cuda" else job.device
    model = ColBERT.from_pretrained(job.model, device=device)
    train(
        model,
        join(job.questions, job.config.nway, job.config.seed),
        job.output,
        job.config,
        resume=True,
        progress=job.progress and rank == 0,
    )


def join(questions: Sequence[Questions], nway: int | None, seed: int) -> Sequence[Example]:
    """The examples of all collections, one after the other; `train` shuffles them."""
    parts = (
        TrainingData(each.queries, each.documents, TupleFile(each.tuples), nway=nway, seed=seed)
        for each in questions
    )
    return cast("Sequence[Example]", ConcatDataset(cast("Iterable[Dataset[Example]]", parts)))


def launch(job: TrainingJob, processes: int) -> None:
    """Run a training, in `processes` processes of this machine as ``torchrun`` starts them.

    Raises what `run` does; ChildFailedError where a process died of something else.
    """
    if processes == 1:
        run(job)
        return
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=uuid.uuid4().hex,
        max_restarts=0,
    )
    # As torchrun does: processes with as many threads each as there are cores slow one another.
    with _threads(max(1, (os.cpu_count() or 1) // processes)):
        try:
            elastic_launch(config, run)(job)
        except ChildFailedError as error:
            _, failure = error.get_first_failure()
            mended = _as_raised(failure.message)
            if mended is None:
                raise
            raise mended from error


def _as_raised(message: object) -> Exception | None:
    """The error that a process failed with, if a user can do something about it."""
    text = message["message"] if isinstance(message, dict) else ""
    name, _, text = text.partition(": ")
    return _MENDABLE[name](text) if name in _MENDABLE else None


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """OpenMP's threads of processes that are started meanwhile, unless the user has said."""
    name = "OMP_NUM_THREADS"
    said = name in os.environ
    os.environ.setdefault(name, str(count))
    try:
        yield
    finally:
        if not said:
            del os.environ[name]
