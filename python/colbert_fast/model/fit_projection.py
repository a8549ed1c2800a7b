"""A projection to start a training from: principal directions of an encoder's token vectors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from colbert_fast.model.colbert import ColBERT
from colbert_fast.model.parts import Checkpoint
from colbert_fast.model.projection import Dense, Projection

__all__ = ["fit_projection", "principal_projection"]

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
