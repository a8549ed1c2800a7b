"""How good a model is while it is trained: a BEIR folder, searched with an index built for it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from colbert_fast.evaluation import evaluate, load_beir
from colbert_fast.index import Index
from colbert_fast.model import ColBERT

__all__ = ["METRIC", "validate"]

METRIC = "eval_nDCG@10"


def validate(model: ColBERT, folder: str | Path, split: str) -> float:
    """nDCG@10 of a model in eval mode, with a temporary index of 2 bits."""
    beir = load_beir(folder, split=split)
    with TemporaryDirectory(prefix="colbert-fast-") as temporary:
        path = Path(temporary) / "index"
        index = Index.build(path, beir.documents(), model=model, progress=False)
        return evaluate(index, beir.queries, beir.qrels, measures=["nDCG@10"])["nDCG@10"]
