"""The model that a recipe starts from."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from colbert_fast.model import ColBERT
from colbert_fast.model.default import minilm_folder
from colbert_fast.model.fit_projection import principal_projection
from colbert_fast.model.parts import Checkpoint
from colbert_fast.training.recipe import Start

__all__ = ["make_start", "resolve_model"]

_TEXTS = 2000  # other samples of so many changed nDCG@10 by a fifth of a point


def make_start(
    start: Start, texts: Iterable[str], folder: Path, *, seed: int, progress: bool = True
) -> None:
    """Write the start of a run to a model folder.

    Parameters
    ----------
    start : Start
    texts : iterable of str
        Passages to fit a projection to, if that is wanted; the first 2,000 are read.
    folder : Path
    seed : int
        Of a random projection.
    progress : bool
        Show a bar.
    """
    model = ColBERT.from_pretrained(
        resolve_model(start.model),
        dim=start.dim,
        seed=seed,
        query_length=start.query_length,
        document_length=start.document_length,
        query_prefix=start.query_prefix,
        document_prefix=start.document_prefix,
        do_query_expansion=start.do_query_expansion,
        attend_to_expansion_tokens=start.attend_to_expansion_tokens,
    )
    if start.projection == "principal":
        parts = Checkpoint(model.config, model.tokenizer.base, model.backbone, model.projection)
        model.projection = principal_projection(
            parts, islice(texts, _TEXTS), model.dim, progress=progress
        )
    model.save_pretrained(folder)


def resolve_model(name: str) -> str:
    """A recipe's name of a model: "minilm" is the encoder inside the default model."""
    return str(minilm_folder()) if name == "minilm" else name
