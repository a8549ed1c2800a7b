"""Document rows as an index will hold them, while they are trained: pooled, and quantised."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from colbert_fast.compress.codec import Codec, ResidualCodec, open_codec
from colbert_fast.compress.kmeans import fit_centroids
from colbert_fast.kernels import ops
from colbert_fast.training.distributed import gather_rows

__all__ = ["Quantizer", "pool_rows"]


def pool_rows(rows: Tensor, doclens: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """`ops.pool` with gradients through the means, which are scaled to unit length.

    Parameters
    ----------
    rows : float32 (n, dim)
    doclens : int32 (n_docs,), summing to n
    factor : int

    Returns
    -------
    rows : float32 (m, dim), unit rows
    doclens : int32 (n_docs,), summing to m
    """
    if factor == 1:
        return rows, doclens
    lengths = doclens.cpu()
    _, pooled, clusters = ops.pool(rows.detach().cpu(), lengths, factor, return_clusters=True)
    starts = torch.repeat_interleave(pooled.cumsum(0) - pooled, lengths.long())
    into = (starts + clusters).to(rows.device)
    # Sums point where means do.
    sums = rows.new_zeros((int(pooled.sum()), rows.shape[1])).index_add(0, into, rows)
    return functional.normalize(sums, dim=1), pooled.to(doclens)


class Quantizer:
    """The codec's error on document rows in the last steps; gradients pass as if there were none.

    The straight-through estimator (arXiv 1308.3432) around the default codec of an index. It is
    fitted once, to the documents of the first of those steps, with as many centroids as an index of
    them gets. A larger index has more, so its error is a little smaller.

    Parameters
    ----------
    nbits : int
    first_step : int
        The step, counted from 0, that it begins with.
    """

    def __init__(self, nbits: int, first_step: int) -> None:
        self.nbits = nbits
        self.first_step = first_step
        self.codec: Codec | None = None

    def __call__(self, step: int, rows: Tensor, doclens: Tensor) -> Tensor:
        """float32 unit (n, dim) to what the codec gives back of them, from `first_step` on."""
        if step < self.first_step:
            return rows
        if self.codec is None:
            self.codec = self._fit(gather_rows(rows.detach(), doclens)[0])
        true = rows.detach()
        stored = self.codec.decode(self.codec.encode(true.cpu().numpy()))
        return rows + (torch.from_numpy(stored).to(true) - true)

    def _fit(self, rows: Tensor) -> ResidualCodec:
        points = rows.cpu().numpy()
        count = min(1 << int(math.log2(16 * math.sqrt(len(points)))), max(1, len(points) // 32))
        return ResidualCodec.fit(fit_centroids(points, count), points, nbits=self.nbits)

    def save(self, folder: Path) -> None:
        """Write the codec, if it is fitted."""
        if self.codec is not None:
            folder.mkdir()
            self.codec.save(folder)

    def load(self, folder: Path) -> None:
        """Take the codec of a checkpoint, if it has one."""
        if folder.is_dir():
            count, dim = np.load(folder / "centroids.npy", mmap_mode="r").shape
            self.codec = open_codec(
                folder, "default", nbits=self.nbits, dim=dim, num_centroids=count
            )
