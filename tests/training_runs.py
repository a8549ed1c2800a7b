"""What the trainer's tests share: a tiny model, examples, and a run in a process of its own.

``python training_runs.py MODEL OUTPUT JSON`` trains with the configuration and options in JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import TrainerCallback

from colbert_fast.model import ColBERT
from colbert_fast.training.config import TrainingConfig
from colbert_fast.training.trainer import train
from tiny_models import DIM, WORDS, write_stanford

METADATA = {"query_maxlen": 10, "doc_maxlen": 24, "dim": DIM}


class Example(NamedTuple):
    query: str
    documents: tuple[str, ...]
    scores: tuple[float, ...] | None = None


def make_examples(count: int = 24, n: int = 3, seed: int = 0) -> list[Example]:
    """Random texts; the positive repeats the query's words."""
    rng = np.random.default_rng(seed)

    def text(longest: int) -> str:
        return " ".join(rng.choice([*WORDS, "!"], rng.integers(1, longest)))

    examples = []
    for _ in range(count):
        query = text(6)
        documents = [f"{query} {text(8)}", *(text(22) for _ in range(n - 1))]
        scores = np.append(3.0, rng.standard_normal(n - 1))
        examples.append(Example(query, tuple(documents), tuple(map(float, scores))))
    return examples


def with_twins(examples: list[Example]) -> list[Example]:
    """All examples ask one of two queries, so that many in a batch share one."""
    return [each._replace(query=examples[i % 2].query) for i, each in enumerate(examples)]


def write_model(folder: Path) -> Path:
    """A tiny checkpoint, in Stanford's layout."""
    return write_stanford(folder, metadata=METADATA)


def load_model(folder: Path, *, dropout: float = 0.1) -> ColBERT:
    """The model of `write_model` with that much dropout, encoding in float32."""
    model = ColBERT.from_pretrained(folder, dtype="float32")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return model


def write_beir(folder: Path, examples: list[Example]) -> Path:
    """A BEIR folder of the examples, whose positives are its dev judgements."""
    documents, queries, judged = [], [], ["query-id\tcorpus-id\tscore"]
    for number, example in enumerate(examples):
        queries.append({"_id": f"q{number}", "text": example.query})
        documents += [
            {"_id": f"d{number}-{i}", "text": text} for i, text in enumerate(example.documents)
        ]
        judged.append(f"q{number}\td{number}-0\t1")
    for name, records in (("corpus", documents), ("queries", queries)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (folder / "qrels").mkdir()
    (folder / "qrels" / "dev.tsv").write_text("\n".join(judged) + "\n", encoding="utf-8")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """A saved model's weights."""
    return ColBERT.from_pretrained(folder).state_dict()


@contextmanager
def one_thread() -> Iterator[None]:
    """As `run` has: the bits of a sum depend on the number of torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class KillAt(TrainerCallback):
    """Ends the process as a power cut would, at the end of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run(
    model: Path, output: Path, *, processes: int = 1, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Train in another process, or in several."""
    launcher = []
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, __file__, str(model), str(output), json.dumps(options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )


def main(model: str, output: str, options: str) -> None:
    """The other process."""
    given = json.loads(options)
    kill_at, resume = given.pop("kill_at", None), given.pop("resume", False)
    twins = given.pop("twins", False)
    dropout = given.pop("dropout", 0.1)
    torch.set_num_threads(1)
    train(
        load_model(Path(model), dropout=dropout),
        with_twins(make_examples()) if twins else make_examples(),
        output,
        TrainingConfig.from_dict(given),
        resume=resume,
        progress=False,
        callbacks=[] if kill_at is None else [KillAt(kill_at)],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
