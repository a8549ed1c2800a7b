"""A segment: the arrays of a run of documents as .npy files, appended to, then mapped."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from colbert_fast.errors import IndexFormatError
from colbert_fast.storage.codes import CodePacker, PackedCodes, packed_bytes
from colbert_fast.storage.files import named_error

__all__ = [
    "Column",
    "NpyWriter",
    "Segment",
    "SegmentWriter",
    "open_column",
    "open_npy",
    "says_dtype",
    "write_lists",
    "write_npy",
]

_HEADER_BYTES = 128  # a multiple of 64, so mapped data is aligned for every vector width


@dataclasses.dataclass(frozen=True)
class Column:
    """One array with a row per token: its dtype and the shape of a row.

    `bits`, if not None, is what a row takes on disk: an int32 from 0 on, packed.
    """

    dtype: np.dtype[Any]
    row: tuple[int, ...] = ()
    bits: int | None = None

    @property
    def row_bytes(self) -> float:
        """What a row takes on disk."""
        whole = self.dtype.itemsize * math.prod(self.row)
        return whole if self.bits is None else self.bits / 8


class NpyWriter:
    """Append rows to an .npy file whose final length is not known beforehand.

    The header always takes 128 bytes, so that `close` can rewrite it with the true shape.
    """

    def __init__(self, path: Path, column: Column) -> None:
        self.path = path
        self.rows = 0
        self._column = column
        self._file: IO[bytes] = path.open("xb")
        self._write(_header(column, 0))

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Write `rows`, shape (n, *row), of exactly the column's dtype."""
        if rows.dtype != self._column.dtype or rows.shape[1:] != self._column.row:
            raise TypeError(
                f"{self.path.name}: rows must be {self._column.dtype} (n, *{self._column.row}), "
                f"got {rows.dtype} {rows.shape}"
            )
        self._write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def close(self) -> None:
        """Write the final header and close the file."""
        if self._file.closed:
            return
        self._file.seek(0)
        self._write(_header(self._column, self.rows))
        self.abort()

    def abort(self) -> None:
        """Close the file as it is."""
        try:
            self._file.close()
        except OSError as error:
            raise named_error(error, self.path) from error

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise named_error(error, self.path) from error


def _header(column: Column, rows: int) -> bytes:
    """The .npy header, version 1.0, padded to `_HEADER_BYTES`: the bytes that `np.save` writes."""
    shape = (rows, *column.row)
    text = f"{{'descr': '{column.dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    body = text.encode("ascii").ljust(_HEADER_BYTES - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


def write_npy(path: Path, array: npt.NDArray[Any]) -> None:
    """Write one whole array."""
    writer = NpyWriter(path, Column(array.dtype, array.shape[1:]))
    try:
        writer.append(array)
        writer.close()
    finally:
        writer.abort()


def open_npy(path: Path, column: Column, rows: int | None = None) -> npt.NDArray[Any]:
    """Map an .npy file of this module read-only.

    The header must be byte for byte what `NpyWriter` writes for this dtype and shape, so nothing
    of an unknown file is parsed.

    Parameters
    ----------
    path
        The file.
    column
        Its dtype and row shape.
    rows
        Its length; None takes any.

    Raises
    ------
    IndexFormatError
        The file is missing, truncated, foreign, or not of this dtype and shape; named.
    """
    row_bytes = column.dtype.itemsize * math.prod(column.row)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            found = file.read(_HEADER_BYTES)
    except OSError as error:
        raise IndexFormatError(f"{path}: {error.strerror or error}") from error
    if rows is None:
        rows = max(size - _HEADER_BYTES, 0) // row_bytes
    if found != _header(column, rows):
        shape = (rows, *column.row)
        raise IndexFormatError(f"{path}: not an .npy file of {column.dtype} {shape}")
    if size != _HEADER_BYTES + rows * row_bytes:
        raise IndexFormatError(
            f"{path}: {size} bytes, expected {_HEADER_BYTES + rows * row_bytes}: truncated"
        )
    try:  # it may have been removed since it was read
        mapped = np.memmap(path, column.dtype, "r", _HEADER_BYTES, (rows, *column.row))
    except OSError as error:
        raise IndexFormatError(f"{path}: {error.strerror or error}") from error
    return mapped.view(np.ndarray)


def says_dtype(path: Path, dtype: npt.DTypeLike) -> bool:
    """Whether there is an .npy file whose header names this dtype."""
    try:
        with path.open("rb") as file:
            return f"'descr': '{np.dtype(dtype).str}'".encode() in file.read(_HEADER_BYTES)
    except OSError:
        return False


_DOCLENS = Column(np.dtype(np.int32))
_COUNTS = Column(np.dtype(np.int32))
_OFFSETS = Column(np.dtype(np.int64))
_BYTES = Column(np.dtype(np.uint8))


class SegmentWriter:
    """Append the columns of a segment chunk by chunk.

    Use as a context manager: the files are closed on the way out, whatever happened.
    """

    def __init__(self, folder: Path, columns: Mapping[str, Column]) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.num_tokens = 0
        self.num_documents = 0
        self._writers: dict[str, NpyWriter] = {}
        self._packers: dict[str, CodePacker] = {}
        for name, column in {**columns, "doclens": _DOCLENS}.items():
            if column.bits is not None:
                self._packers[name] = CodePacker(column.bits)
                column = _BYTES
            self._writers[name] = NpyWriter(folder / f"{name}.npy", column)

    def append(
        self, columns: Mapping[str, npt.NDArray[Any]], doclens: npt.NDArray[np.int32]
    ) -> None:
        """Add documents: `doclens` says how many rows of every column each one has."""
        for name, rows in {**columns, "doclens": doclens}.items():
            packer = self._packers.get(name)
            self._writers[name].append(rows if packer is None else packer.pack(rows))
        self.num_documents += len(doclens)
        self.num_tokens += int(doclens.sum(dtype=np.int64))

    def close(self) -> None:
        """Finish the files of all columns."""
        for name, packer in self._packers.items():
            self._writers[name].append(packer.finish())
        for writer in self._writers.values():
            writer.close()

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as stack:
            for writer in self._writers.values():
                stack.callback(writer.abort)


def write_lists(
    folder: Path,
    counts: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    blocks: Iterable[npt.NDArray[np.uint8]],
) -> None:
    """Write the inverted lists (`ops.stream_lists`) of the segment in `folder`."""
    write_npy(folder / "list_counts.npy", counts)
    write_npy(folder / "list_offsets.npy", offsets)
    writer = NpyWriter(folder / "list_data.npy", _BYTES)
    try:
        for block in blocks:
            writer.append(block)
        writer.close()
    finally:
        writer.abort()


@dataclasses.dataclass(frozen=True)
class Segment:
    """The mapped arrays of a segment.

    `columns` holds a row per token: ``codes``, packed, and what the codec adds; `doclens` int32
    (n_docs,); `list_counts` int32 (K,), `list_offsets` int64 (K+1,), `list_data` uint8.
    """

    columns: Mapping[str, npt.NDArray[Any] | PackedCodes]
    doclens: npt.NDArray[np.int32]
    list_counts: npt.NDArray[np.int32]
    list_offsets: npt.NDArray[np.int64]
    list_data: npt.NDArray[np.uint8]

    @classmethod
    def open(
        cls,
        folder: Path,
        columns: Mapping[str, Column],
        *,
        num_documents: int,
        num_tokens: int,
        num_centroids: int,
    ) -> Segment:
        """Map the files of `folder`; check shapes and totals without reading a row per token.

        Raises
        ------
        IndexFormatError
            A file is missing, truncated, foreign or disagrees with the totals; named.
        """
        segment = cls(
            columns={
                name: open_column(folder / f"{name}.npy", column, num_tokens)
                for name, column in columns.items()
            },
            doclens=open_npy(folder / "doclens.npy", _DOCLENS, num_documents),
            list_counts=open_npy(folder / "list_counts.npy", _COUNTS, num_centroids),
            list_offsets=open_npy(folder / "list_offsets.npy", _OFFSETS, num_centroids + 1),
            list_data=open_npy(folder / "list_data.npy", _BYTES),
        )
        segment._check_totals(folder, num_tokens)
        return segment

    def _check_totals(self, folder: Path, num_tokens: int) -> None:
        total = int(self.doclens.sum(dtype=np.int64))
        if total != num_tokens or self.doclens.min() < 0:
            raise IndexFormatError(
                f"{folder / 'doclens.npy'}: lengths sum to {total}, expected {num_tokens}"
            )
        counts = self.list_counts
        if counts.min() < 0 or counts.max() > len(self.doclens):
            raise IndexFormatError(
                f"{folder / 'list_counts.npy'}: lists must hold 0 to {len(self.doclens)} documents"
            )
        offsets = self.list_offsets
        if offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] != len(self.list_data):
            raise IndexFormatError(
                f"{folder / 'list_offsets.npy'}: must ascend from 0 to {len(self.list_data)}"
            )

    @property
    def codes(self) -> PackedCodes:
        """The column ``codes``."""
        return cast(PackedCodes, self.columns["codes"])

    def check_codes(self, folder: Path, num_centroids: int, *, block: int = 1 << 22) -> None:
        """Read all codes and check that each names a centroid."""
        codes = self.codes
        if num_centroids == 1 << codes.bits:
            return
        for start in range(0, len(codes), block):
            part = codes[start : start + block]
            if part.max() >= num_centroids:
                raise IndexFormatError(
                    f"{folder / 'codes.npy'}: a code outside 0..{num_centroids - 1} "
                    f"within tokens {start}..{start + len(part) - 1}"
                )


def open_column(path: Path, column: Column, rows: int) -> npt.NDArray[Any] | PackedCodes:
    """Map the file of a column as `SegmentWriter` writes it; errors as in `open_npy`."""
    if column.bits is None:
        return open_npy(path, column, rows)
    packed = open_npy(path, _BYTES, packed_bytes(rows, column.bits))
    return PackedCodes(packed, column.bits, rows)
