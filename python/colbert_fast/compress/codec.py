"""The codecs: residual codes of 1 to 8 bits per dimension, and plain float16."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from colbert_fast.compress.levels import quantile_levels
from colbert_fast.compress.trellis import fit_trellis
from colbert_fast.errors import IndexFormatError
from colbert_fast.kernels import ops
from colbert_fast.storage.codes import code_bits
from colbert_fast.storage.manifest import CodecName
from colbert_fast.storage.segments import Column, open_npy, says_dtype, write_npy

__all__ = ["NBITS", "Codec", "Columns", "Float16Codec", "ResidualCodec", "open_codec"]

NBITS = ops.NBITS
_TRELLIS_TOKENS = 20_000  # more change the weights by less than their rounding

Columns = Mapping[str, npt.NDArray[Any]]


class Codec(Protocol):
    """What a build and a search need of a codec.

    `centroids` are float32 (K, dim) and hold exactly the values that are stored, so that encoding
    and searching compute with the same numbers.
    """

    @property
    def name(self) -> CodecName: ...
    @property
    def nbits(self) -> int: ...
    @property
    def centroids(self) -> npt.NDArray[np.float32]: ...
    def columns(self, num_centroids: int | None = None) -> dict[str, Column]:
        """What `encode` returns, or returned when there were fewer centroids: a row per token."""
        ...

    def encode(self, embeddings: npt.NDArray[Any]) -> Columns:
        """float32 or float16 (n, dim) to the columns."""
        ...

    def decode(self, columns: Columns) -> npt.NDArray[np.float32]:
        """The columns back to float32 (n, dim), rows of unit length."""
        ...

    def extended(self, centroids: npt.NDArray[np.float32]) -> Codec:
        """This codec with further centroids, float32 (n, dim); what it encoded stays as it is."""
        ...

    def save(self, folder: Path) -> None:
        """Write the codec's own files."""
        ...


def round_centroids(centroids: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Centroids as they will be read back: rounded to float16, held as float32."""
    return centroids.astype(np.float16).astype(np.float32)


def _stored_centroids(centroids: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """As float16, which ours are; float32 where another library's would be changed by that."""
    with np.errstate(over="ignore"):
        narrow = centroids.astype(np.float16)
    return narrow if np.array_equal(narrow.astype(np.float32), centroids) else centroids


def _rounded(centroids: npt.NDArray[np.float32], name: CodecName) -> npt.NDArray[np.float32]:
    if name == "default":
        return _from_centroid_bytes(*_centroid_bytes(centroids))
    return round_centroids(centroids)


def _centroid_bytes(
    centroids: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int8]]:
    """Rows and exponents: centroid ~ row * 2**exponent, of the least exponent that fits.

    Scales are powers of two so that rounding what was rounded changes nothing.
    """
    fraction, exponents = np.frexp(np.abs(centroids).max(axis=1, initial=0) / np.float32(127))
    exponents = (exponents - (fraction == 0.5)).astype(np.int8)
    return np.rint(np.ldexp(centroids, -exponents[:, None])).astype(np.int8), exponents


def _from_centroid_bytes(
    rows: npt.NDArray[np.int8], exponents: npt.NDArray[np.int8]
) -> npt.NDArray[np.float32]:
    centroids = rows.astype(np.float32)
    centroids *= np.ldexp(np.float32(1), exponents)[:, None]  # exact, and twice as fast as ldexp
    return centroids


def _codes(num_centroids: int) -> Column:
    return Column(np.dtype(np.int32), bits=code_bits(num_centroids))


@dataclasses.dataclass(frozen=True)
class ResidualCodec:
    """Centroid id plus `nbits` per dimension of the residual (ColBERTv2, section 3.3).

    "plaid" puts each component into a bucket of its own. "default" codes the residual by a trellis
    and a byte of scale per token (`ops.compress_trellis`): half of PLAID's error at 2 bits.

    Attributes
    ----------
    centroids : float32 (K, dim)
    weights : float32, as in `ops.decompress`
    cutoffs : float32 (2**nbits - 1,), ascending; a component's bucket is how many lie below it.
        None: the codec is "default".
    """

    centroids: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    nbits: int
    cutoffs: npt.NDArray[np.float32] | None = None

    @classmethod
    def fit(
        cls,
        centroids: npt.NDArray[np.float32],
        heldout: npt.NDArray[Any],
        *,
        nbits: int,
        name: CodecName = "default",
    ) -> ResidualCodec:
        """Choose the weights by the residuals of held-out vectors, all components together.

        "plaid": with b bits, cutoffs are the quantiles i/2^b and weights the quantiles (i+0.5)/2^b,
        as ColBERTv2 has them. "default": the weights of least squared error (`fit_trellis`).

        Parameters
        ----------
        centroids
            float32 (K, dim); rounded here, to float16 or with "default" to int8 and an exponent
            each: residuals make up for it.
        heldout
            float32 or float16 (n, dim), n >= 1; best not used to fit the centroids.
        nbits
            1, 2, 3, 4 or 8.
        name
            "default" or "plaid".
        """
        check_nbits(nbits)
        rounded = _rounded(centroids, name)
        if name == "default":
            heldout = heldout[:_TRELLIS_TOKENS]
        codes, _ = ops.assign(heldout, rounded)
        residuals = heldout.astype(np.float32)
        residuals -= rounded[codes]
        if name == "default":
            return cls(rounded, fit_trellis(residuals, nbits), nbits)
        values = residuals.ravel()
        values.sort()
        cutoffs, weights = quantile_levels(values, 1 << nbits)
        return cls(rounded, weights, nbits, cutoffs)

    @property
    def name(self) -> CodecName:
        """ "default" or "plaid"."""
        return "default" if self.cutoffs is None else "plaid"

    def columns(self, num_centroids: int | None = None) -> dict[str, Column]:
        """``codes``, ``residuals`` uint8 (dim * nbits / 8), ``inverse_norms`` and ``scales`` uint8.

        "plaid" has no scales, "default" from 4 bits on no inverse norms: they are within 1 or 2 %
        of 1, and only choose what is scored exactly.
        """
        known, dim = self.centroids.shape
        return residual_columns(self.name, num_centroids or known, dim, self.nbits)

    def encode(self, embeddings: npt.NDArray[Any]) -> Columns:
        """See `Codec.encode`."""
        if self.cutoffs is not None:
            return self.complete(*ops.compress(embeddings, self.centroids, self.cutoffs))
        return self.complete(
            *ops.compress_trellis(embeddings, self.centroids, self.weights, self.nbits)
        )

    def complete(
        self,
        codes: npt.NDArray[np.int32],
        residuals: npt.NDArray[np.uint8],
        scales: npt.NDArray[np.uint8] | None = None,
    ) -> Columns:
        """The columns of vectors whose codes, residuals and (with "default") scales are known."""
        columns: dict[str, npt.NDArray[Any]] = {} if scales is None else {"scales": scales}
        if "inverse_norms" in self.columns():
            columns["inverse_norms"] = ops.inverse_norms(
                codes, residuals, self.centroids, self.weights, scales=scales
            )
        columns["codes"] = codes
        columns["residuals"] = residuals
        return columns

    def decode(self, columns: Columns) -> npt.NDArray[np.float32]:
        """See `Codec.decode`."""
        rows: npt.NDArray[np.float32] = ops.decompress(
            columns["codes"],
            columns["residuals"],
            self.centroids,
            self.weights,
            scales=columns.get("scales"),
        )
        return rows

    def extended(self, centroids: npt.NDArray[np.float32]) -> ResidualCodec:
        """See `Codec.extended`."""
        added = _rounded(centroids, self.name)
        return dataclasses.replace(self, centroids=np.concatenate([self.centroids, added]))

    def save(self, folder: Path) -> None:
        """See `Codec.save`."""
        write_npy(folder / "weights.npy", self.weights)
        if self.cutoffs is None:
            rows, exponents = _centroid_bytes(self.centroids)
            write_npy(folder / "centroids.npy", rows)
            write_npy(folder / "centroid_exponents.npy", exponents)
            return
        write_npy(folder / "centroids.npy", _stored_centroids(self.centroids))
        write_npy(folder / "cutoffs.npy", self.cutoffs)


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

    def columns(self, num_centroids: int | None = None) -> dict[str, Column]:
        """``codes`` and ``embeddings`` float16 (dim,)."""
        known, dim = self.centroids.shape
        return float16_columns(num_centroids or known, dim)

    def encode(self, embeddings: npt.NDArray[Any]) -> Columns:
        """See `Codec.encode`."""
        codes, _ = ops.assign(embeddings, self.centroids)
        vectors: Any = embeddings  # or a tensor: see `device`
        on_host = isinstance(embeddings, np.ndarray)
        halves = vectors.astype(np.float16, copy=False) if on_host else vectors.half()
        return {"codes": codes, "embeddings": halves}

    def decode(self, columns: Columns) -> npt.NDArray[np.float32]:
        """See `Codec.decode`; the vectors are returned as they were stored."""
        return columns["embeddings"].astype(np.float32)

    def extended(self, centroids: npt.NDArray[np.float32]) -> Float16Codec:
        """See `Codec.extended`."""
        return Float16Codec(np.concatenate([self.centroids, round_centroids(centroids)]))

    def save(self, folder: Path) -> None:
        """See `Codec.save`."""
        write_npy(folder / "centroids.npy", self.centroids.astype(np.float16))


def residual_columns(
    name: CodecName, num_centroids: int, dim: int, nbits: int
) -> dict[str, Column]:
    """The columns of `ResidualCodec`."""
    uint8 = np.dtype(np.uint8)
    columns = {
        "codes": _codes(num_centroids),
        "residuals": Column(uint8, (dim * nbits // 8,)),
    }
    if name == "plaid" or nbits < 4:
        columns["inverse_norms"] = Column(uint8)
    if name == "default":
        columns["scales"] = Column(uint8)
    return columns


def float16_columns(num_centroids: int, dim: int) -> dict[str, Column]:
    """The columns of `Float16Codec`."""
    return {
        "codes": _codes(num_centroids),
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
    float32 = np.dtype(np.float32)
    centroids = _open_centroids(folder, name, dim, num_centroids)
    if name == "float16":
        return Float16Codec(centroids)
    if name == "default":
        count = 16 if nbits < 4 else 1 << nbits
        weights = open_npy(folder / "weights.npy", Column(float32), count)
        if not np.isfinite(weights).all():
            raise IndexFormatError(f"{folder / 'weights.npy'}: holds values that are not finite")
        return ResidualCodec(centroids, np.array(weights), nbits)
    cutoffs = open_npy(folder / "cutoffs.npy", Column(float32), (1 << nbits) - 1)
    weights = open_npy(folder / "weights.npy", Column(float32), 1 << nbits)
    for path, values in ((folder / "cutoffs.npy", cutoffs), (folder / "weights.npy", weights)):
        if not np.isfinite(values).all() or (values[1:] < values[:-1]).any():
            raise IndexFormatError(f"{path}: must be finite and ascend")
    return ResidualCodec(centroids, np.array(weights), nbits, np.array(cutoffs))


def _open_centroids(
    folder: Path, name: CodecName, dim: int, num_centroids: int
) -> npt.NDArray[np.float32]:
    path, row = folder / "centroids.npy", (dim,)
    if name == "default":
        rows = open_npy(path, Column(np.dtype(np.int8), row), num_centroids)
        path = folder / "centroid_exponents.npy"
        exponents = open_npy(path, Column(np.dtype(np.int8)), num_centroids)
        if exponents.max() > 0:  # of vectors no longer than 127
            raise IndexFormatError(f"{path}: holds exponents above 0")
        return _from_centroid_bytes(rows, exponents)
    wide = name == "plaid" and says_dtype(path, np.float32)
    stored = Column(np.dtype(np.float32 if wide else np.float16), row)
    centroids = open_npy(path, stored, num_centroids).astype(np.float32)
    if not np.isfinite(centroids).all():
        raise IndexFormatError(f"{path}: holds values that are not finite")
    return centroids
