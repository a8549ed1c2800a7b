"""How good a model is: a BEIR folder, searched with an index that is built for it."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from colbert_fast.evaluation import DEFAULT_MEASURES, evaluate, load_beir
from colbert_fast.index import Index
from colbert_fast.model import ColBERT

__all__ = ["METRIC", "Evaluation", "measure", "validate"]

METRIC = "eval_nDCG@10"


class Evaluation(NamedTuple):
    """The measures of a run's first and last model, by name, on a split of a BEIR folder."""

    split: str
    start: dict[str, float]
    trained: dict[str, float]


def measure(
    model: Path, folder: Path, split: str, out: Path, *, device: str, progress: bool
) -> None:
    """Write the measures of a saved model to the file `out`, its index of 2 bits beside it."""
    beir = load_beir(folder, split=split)
    with Index.build(
        out.parent / "index.cf",
        beir.documents(),
        model=ColBERT.from_pretrained(model, device=device),
        resume=True,
        overwrite=True,
        progress=progress,
    ) as index:
        measures = evaluate(index, beir.queries, beir.qrels, measures=DEFAULT_MEASURES)
    out.write_text(json.dumps(measures, indent=2) + "\n", encoding="utf-8")


def validate(model: ColBERT, folder: str | Path, split: str) -> float:
    """nDCG@10 of a model in eval mode, with a temporary index of 2 bits."""
    beir = load_beir(folder, split=split)
    with TemporaryDirectory(prefix="colbert-fast-") as temporary:
        path = Path(temporary) / "index"
        index = Index.build(path, beir.documents(), model=model, progress=False)
        return evaluate(index, beir.queries, beir.qrels, measures=["nDCG@10"])["nDCG@10"]
