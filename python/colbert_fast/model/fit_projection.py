"""Fit the default model's projection: principal directions of MiniLM's token vectors.

``python -m colbert_fast.model.fit_projection passages.jsonl.gz ... --out FOLDER`` writes the Dense
layer that `model/default/1_Dense` holds; the model card beside it says from what and why.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from colbert_fast.corpus import read_corpus
from colbert_fast.model.colbert import ColBERT
from colbert_fast.model.default import load_default
from colbert_fast.model.parts import Checkpoint
from colbert_fast.model.projection import Dense, Projection

__all__ = ["fit_projection"]

Matrix = npt.NDArray[np.float64]


def fit_projection(rows: Iterable[npt.NDArray[np.float32]], dim: int) -> Matrix:
    """Directions that keep the most of unit vectors: uncentred principal components.

    Uncentred, because MaxSim compares cosines, and a shift would change those.

    Parameters
    ----------
    rows : iterable of ndarray of float32, (tokens, width)
    dim : int

    Returns
    -------
    ndarray of float64, (dim, width)
        Orthonormal rows, the strongest direction first, each with its largest component positive.

    Raises
    ------
    ValueError
        If there are no rows.
    """
    moment: Matrix | None = None
    for block in rows:
        wide = block.astype(np.float64)
        moment = wide.T @ wide if moment is None else moment + wide.T @ wide
    if moment is None:
        raise ValueError("rows: no token vectors to fit")
    directions: Matrix = np.linalg.eigh(moment)[1].T[::-1][:dim]
    largest = directions[np.arange(dim), np.abs(directions).argmax(axis=1)]
    turned: Matrix = directions * np.sign(largest)[:, None]
    return turned


def sample_texts(paths: Iterable[Path], count: int, seed: int) -> list[str]:
    """`count` English texts (all ASCII) drawn from all files together."""
    texts = [text for path in paths for text in _ascii_texts(path)]
    chosen = np.random.default_rng(seed).permutation(len(texts))[:count]
    return [texts[i] for i in chosen]


def _ascii_texts(path: Path) -> Iterator[str]:
    texts = (str(document["text"]) for document in read_corpus(path))
    return (text for text in texts if text.isascii())


def bare_model(parts: Checkpoint) -> ColBERT:
    """A model without its projection: unit token vectors of the backbone, in float32."""
    width = int(parts.backbone.config.hidden_size)
    config = replace(parts.config, dim=width)
    bare = replace(parts, config=config, projection=Projection([]))
    return ColBERT(bare, name="bare", dtype="float32")


def principal_projection(
    parts: Checkpoint, texts: Iterable[str], dim: int, *, progress: bool = True
) -> Projection:
    """The projection along the principal directions of the backbone's token vectors in `texts`."""
    matrix = fit_projection(bare_model(parts).encode_documents(iter(texts), progress=progress), dim)
    layer = Dense(matrix.shape[1], dim)
    with torch.no_grad():
        layer.linear.weight.copy_(torch.from_numpy(matrix))
    return Projection([layer])


def main() -> None:
    """Fit on a sample of the given files and write the weights in float16."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", nargs="+", type=Path, help="files or folders of passages")
    parser.add_argument("--out", type=Path, required=True, help="folder for model.safetensors")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dim", type=int, default=128)
    options = parser.parse_args()
    texts = sample_texts(options.corpus, options.texts, options.seed)
    projection = principal_projection(load_default(), texts, options.dim)
    weight = projection.dense_layers[0].linear.weight.detach().half().contiguous()
    options.out.mkdir(parents=True, exist_ok=True)
    save_file({"linear.weight": weight}, options.out / "model.safetensors")


if __name__ == "__main__":
    main()
