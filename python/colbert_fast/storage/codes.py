"""Centroid ids on disk, in no more bits than the number of centroids needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from colbert_fast.kernels import ops

__all__ = ["CodePacker", "PackedCodes", "code_bits", "packed_bytes"]

UInt8 = npt.NDArray[np.uint8]


def code_bits(num_centroids: int) -> int:
    """The bits that ids below `num_centroids` take: at least one."""
    return max(1, (num_centroids - 1).bit_length())


def packed_bytes(num_codes: int, bits: int) -> int:
    """The length of what `ops.pack_codes` gives."""
    return (num_codes * bits + 7) // 8 + ops.CODE_PADDING


class PackedCodes:
    """Codes that are unpacked, to int32, by slicing.

    Attributes
    ----------
    packed : uint8
        As `ops.pack_codes` gives them; may be a memory map.
    bits
        What each takes.
    """

    def __init__(self, packed: UInt8, bits: int, num_codes: int) -> None:
        self.packed = packed
        self.bits = bits
        self._num_codes = num_codes

    def __len__(self) -> int:
        return self._num_codes

    def __getitem__(self, rows: slice) -> npt.NDArray[np.int32]:
        start, stop, step = rows.indices(self._num_codes)
        if step != 1:
            raise ValueError(f"packed codes are read in order, got a step of {step}")
        codes: npt.NDArray[np.int32] = ops.unpack_codes(
            self.packed, self.bits, start, max(stop - start, 0)
        )
        return codes


class CodePacker:
    """Packs codes that come in pieces.

    Eight fill whole bytes; what is left of a piece waits for the next.
    """

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._rest: npt.NDArray[Any] = np.empty(0, np.int32)

    def pack(self, codes: npt.NDArray[Any]) -> UInt8:
        """The bytes that `codes`, int32 (n,), fill."""
        codes = np.concatenate([self._rest, codes])
        whole = len(codes) // 8
        self._rest = codes[8 * whole :]
        packed: UInt8 = ops.pack_codes(codes[: 8 * whole], self._bits)
        return packed[: whole * self._bits]

    def finish(self) -> UInt8:
        """The last bytes, with the padding."""
        packed: UInt8 = ops.pack_codes(self._rest, self._bits)
        return packed
