"""How good a model is: a BEIR folder, searched with an index that is built for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

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
    loaded = ColBERT.from_pretrained(model, device=device)
    index = out.parent / "index.cf"
    # A stopped call goes on building.
    options = {"resume": True, "overwrite": True, "progress": progress}
    measures = _evaluate(loaded, folder, split, index, DEFAULT_MEASURES, options)
    out.write_text(json.dumps(measures, indent=2) + "\n", encoding="utf-8")


def validate(model: ColBERT, folder: str | Path, split: str) -> float:
    """nDCG@10 of a model in eval mode, with a temporary index of 2 bits."""
    with TemporaryDirectory(prefix="colbert-fast-") as temporary:
        index = Path(temporary) / "index"
        options = {"progress": False}
        return _evaluate(model, folder, split, index, ["nDCG@10"], options)["nDCG@10"]


def _evaluate(
    model: ColBERT,
    folder: str | Path,
    split: str,
    path: Path,
    measures: Sequence[str],
    options: dict[str, Any],
) -> dict[str, float]:
    """Measures with an index built at `path` with `options`."""
    beir = load_beir(folder, split=split)
    with Index.build(path, beir.documents(), model=model, **options) as index:
        return evaluate(index, beir.queries, beir.qrels, measures=measures)
