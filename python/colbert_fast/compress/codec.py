"""The codecs: residual codes of 1 to 8 bits per dimension, and plain float16."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from colbert_fast.errors import IndexFormatError
from colbert_fast.kernels import ops
from colbert_fast.storage.manifest import CodecName
from colbert_fast.storage.segments import Column, open_npy, write_npy

__all__ = ["NBITS", "Codec", "Float16Codec", "ResidualCodec", "open_codec"]

NBITS = ops.NBITS
_MAX_UINT16_CENTROIDS = 1 << 16
_LLOYD_STEPS = 200
_LLOYD_TOLERANCE = 1e-6  # of the values' range

Columns = Mapping[str, npt.NDArray[Any]]


class Codec(Protocol):
    """What a build and a search need of a codec.

    `centroids` are float32 (K, dim) and hold exactly the float16 values that are stored, so that
    encoding and searching compute with the same numbers.
    """

    @property
    def name(self) -> CodecName: ...
    @property
    def nbits(self) -> int: ...
    @property
    def centroids(self) -> npt.NDArray[np.float32]: ...
    @property
    def columns(self) -> dict[str, Column]:
        """The arrays with a row per token that `encode` returns."""
        ...

    def encode(self, embeddings: npt.NDArray[Any]) -> Columns:
        """float32 or float16 (n, dim) to the columns."""
        ...

    def decode(self, columns: Columns) -> npt.NDArray[np.float32]:
        """The columns back to float32 (n, dim), rows of unit length."""
        ...

    def save(self, folder: Path) -> list[str]:
        """Write the codec's own files; returns their names."""
        ...


def round_centroids(centroids: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Centroids as they will be read back: rounded to float16, held as float32."""
    return centroids.astype(np.float16).astype(np.float32)


def _code_dtype(num_centroids: int) -> np.dtype[Any]:
    return np.dtype(np.uint16 if num_centroids <= _MAX_UINT16_CENTROIDS else np.int32)


@dataclasses.dataclass(frozen=True)
class ResidualCodec:
    """Centroid id plus `nbits` per dimension of the residual (ColBERTv2, section 3.3).

    "residual" and "plaid" are stored and decoded alike, and differ in where `fit` puts the buckets.

    Attributes
    ----------
    centroids : float32 (K, dim)
    cutoffs : float32 (2**nbits - 1,), ascending; a component's bucket is how many lie below it
    weights : float32 (2**nbits,), the value each bucket decodes to
    """

    centroids: npt.NDArray[np.float32]
    cutoffs: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]

    name: CodecName = "residual"

    @classmethod
    def fit(
        cls,
        centroids: npt.NDArray[np.float32],
        heldout: npt.NDArray[Any],
        *,
        nbits: int,
        name: CodecName = "residual",
    ) -> ResidualCodec:
        """Place the buckets by the residuals of held-out vectors, all components together.

        "plaid": with b bits, cutoffs are the quantiles i/2^b and weights the quantiles (i+0.5)/2^b,
        as ColBERTv2 has them. "residual": the levels of least squared error (`lloyd_max`), for the
        same bytes.

        Parameters
        ----------
        centroids
            float32 (K, dim); rounded to float16 here.
        heldout
            float32 or float16 (n, dim), n >= 1; best not used to fit the centroids.
        nbits
            1, 2, 3, 4 or 8.
        name
            "residual" or "plaid".
        """
        check_nbits(nbits)
        rounded = round_centroids(centroids)
        codes, _ = ops.assign(heldout, rounded)
        residuals = heldout.astype(np.float32)
        residuals -= rounded[codes]
        values = residuals.ravel()
        values.sort()
        if name == "plaid":
            cutoffs, weights = quantile_levels(values, 1 << nbits)
        else:
            cutoffs, weights = lloyd_max(values, 1 << nbits)
        return cls(rounded, cutoffs, weights, name)

    @property
    def nbits(self) -> int:
        """Bits per dimension."""
        return (len(self.weights) - 1).bit_length()

    @property
    def columns(self) -> dict[str, Column]:
        """``codes``, ``residuals`` uint8 (dim * nbits / 8) and ``inverse_norms`` uint8."""
        num_centroids, dim = self.centroids.shape
        return residual_columns(num_centroids, dim, self.nbits)

    def encode(self, embeddings: npt.NDArray[Any]) -> Columns:
        """See `Codec.encode`."""
        codes, residuals = ops.compress(embeddings, self.centroids, self.cutoffs)
        norms = ops.inverse_norms(codes, residuals, self.centroids, self.weights)
        dtype = _code_dtype(len(self.centroids))
        return {"codes": codes.astype(dtype), "residuals": residuals, "inverse_norms": norms}

    def decode(self, columns: Columns) -> npt.NDArray[np.float32]:
        """See `Codec.decode`."""
        codes, residuals = columns["codes"], columns["residuals"]
        rows: npt.NDArray[np.float32]
        rows = ops.decompress(codes, residuals, self.centroids, self.weights)
        return rows

    def save(self, folder: Path) -> list[str]:
        """See `Codec.save`."""
        write_npy(folder / "centroids.npy", self.centroids.astype(np.float16))
        write_npy(folder / "cutoffs.npy", self.cutoffs)
        write_npy(folder / "weights.npy", self.weights)
        return ["centroids.npy", "cutoffs.npy", "weights.npy"]


Levels = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


def quantile_levels(values: npt.NDArray[np.float32], n: int) -> Levels:
    """Cutoffs (n - 1,) between, and weights (n,) in the middle of, n equally full buckets.

    `values` is sorted, which makes the quantiles look-ups.
    """
    at = np.quantile(values, np.arange(1, 2 * n) / (2 * n)).astype(np.float32)
    return at[1::2].copy(), at[0::2].copy()


def lloyd_max(values: npt.NDArray[np.float32], n: int) -> Levels:
    """Cutoffs (n - 1,) and weights (n,) of least squared error, for sorted `values`.

    Lloyd's iteration from the quantiles: a cutoff lies midway between its weights, a weight is the
    mean of its bucket (S. Lloyd, "Least squares quantization in PCM", 1982; J. Max, 1960).
    """
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    weights = quantile_levels(values, n)[1].astype(np.float64)
    for _ in range(_LLOYD_STEPS):
        cutoffs = (weights[1:] + weights[:-1]) / 2
        ends = np.searchsorted(values, cutoffs, side="right")
        edges = np.concatenate([[0], ends, [len(values)]])
        counts = np.diff(edges)
        # An empty bucket, of values that repeat, keeps its weight.
        means = np.divide(np.diff(sums[edges]), counts, out=weights.copy(), where=counts > 0)
        moved = np.abs(means - weights).max()
        weights = means
        if moved < _LLOYD_TOLERANCE * (values[-1] - values[0]):
            break
    cutoffs = (weights[1:] + weights[:-1]) / 2
    return cutoffs.astype(np.float32), weights.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Float16Codec:
    """The vectors as float16, as ColBERT v1 kept them; centroids only find candidates."""

    centroids: npt.NDArray[np.float32]

    name: CodecName = dataclasses.field(default="float16", init=False)
    nbits: int = dataclasses.field(default=16, init=False)

    @classmethod
    def fit(cls, centroids: npt.NDArray[np.float32]) -> Float16Codec:
        """Round the centroids to what is stored."""
        return cls(round_centroids(centroids))

    @property
    def columns(self) -> dict[str, Column]:
        """``codes`` and ``embeddings`` float16 (dim,)."""
        num_centroids, dim = self.centroids.shape
        return float16_columns(num_centroids, dim)

    def encode(self, embeddings: npt.NDArray[Any]) -> Columns:
        """See `Codec.encode`."""
        codes, _ = ops.assign(embeddings, self.centroids)
        return {
            "codes": codes.astype(_code_dtype(len(self.centroids))),
            "embeddings": embeddings.astype(np.float16, copy=False),
        }

    def decode(self, columns: Columns) -> npt.NDArray[np.float32]:
        """See `Codec.decode`; the vectors are returned as they were stored."""
        return columns["embeddings"].astype(np.float32)

    def save(self, folder: Path) -> list[str]:
        """See `Codec.save`."""
        write_npy(folder / "centroids.npy", self.centroids.astype(np.float16))
        return ["centroids.npy"]


def residual_columns(num_centroids: int, dim: int, nbits: int) -> dict[str, Column]:
    """The columns of `ResidualCodec`."""
    uint8 = np.dtype(np.uint8)
    return {
        "codes": Column(_code_dtype(num_centroids)),
        "residuals": Column(uint8, (dim * nbits // 8,)),
        "inverse_norms": Column(uint8),
    }


def float16_columns(num_centroids: int, dim: int) -> dict[str, Column]:
    """The columns of `Float16Codec`."""
    return {
        "codes": Column(_code_dtype(num_centroids)),
        "embeddings": Column(np.dtype(np.float16), (dim,)),
    }


def check_nbits(nbits: int) -> None:
    """Raise ValueError unless residuals can be stored with `nbits` bits."""
    if nbits not in NBITS:
        raise ValueError(f"nbits must be one of {NBITS}, got {nbits!r}")


def check_dim(dim: int) -> None:
    """Raise ValueError unless the kernels take vectors of `dim` dimensions."""
    if dim % 8 or not 8 <= dim <= ops.MAX_DIM:
        raise ValueError(
            f"dim must be a multiple of 8 from 8 to {ops.MAX_DIM}, got {dim}; vectors padded with "
            "zeros keep their scores"
        )


def open_codec(
    folder: Path, name: CodecName, *, nbits: int, dim: int, num_centroids: int
) -> ResidualCodec | Float16Codec:
    """Read the codec of an index.

    Raises
    ------
    IndexFormatError
        A file is missing, truncated, foreign or of another shape; named.
    """
    if dim % 8 or dim > ops.MAX_DIM or (nbits != 16 and nbits not in NBITS):
        raise IndexFormatError(f"{folder / 'manifest.json'}: nbits {nbits} with dim {dim}")
    float16, float32 = np.dtype(np.float16), np.dtype(np.float32)
    stored = open_npy(folder / "centroids.npy", Column(float16, (dim,)), num_centroids)
    centroids = stored.astype(np.float32)
    if not np.isfinite(centroids).all():
        raise IndexFormatError(f"{folder / 'centroids.npy'}: holds values that are not finite")
    if name == "float16":
        return Float16Codec(centroids)
    cutoffs = open_npy(folder / "cutoffs.npy", Column(float32), (1 << nbits) - 1)
    weights = open_npy(folder / "weights.npy", Column(float32), 1 << nbits)
    for path, values in ((folder / "cutoffs.npy", cutoffs), (folder / "weights.npy", weights)):
        if not np.isfinite(values).all() or (values[1:] < values[:-1]).any():
            raise IndexFormatError(f"{path}: must be finite and ascend")
    return ResidualCodec(centroids, np.array(cutoffs), np.array(weights), name)
