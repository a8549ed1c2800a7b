"""Codes in no more bits than they need: the kernel, and the column of a segment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from colbert_fast.kernels import ops, reference
from colbert_fast.storage.codes import CodePacker, PackedCodes, code_bits, packed_bytes
from support import any_threads, every_isa, same_bits

COUNTS = (0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 100)


def random_codes(bits: int, n: int, dtype: Any = np.int32) -> np.ndarray:
    codes = np.random.default_rng(bits).integers(0, 2**bits, n)
    codes[-2:] = (0, 2**bits - 1)
    return codes.astype(dtype)


@every_isa
@pytest.mark.parametrize("bits", range(1, 32))
def test_packed_codes_follow_the_reference(bits: int) -> None:
    codes = random_codes(bits, 150)
    packed = ops.pack_codes(codes, bits)
    assert same_bits(packed, reference.pack_codes(codes, bits))
    assert len(packed) == (150 * bits + 7) // 8 + ops.CODE_PADDING
    for first in (*range(10), 50):
        for count in COUNTS:
            found = ops.unpack_codes(packed, bits, first, count)
            assert same_bits(found, codes[first : first + count])
            assert same_bits(found, reference.unpack_codes(packed, bits, first, count))


@pytest.mark.parametrize("count", COUNTS)
def test_both_types_of_codes(count: int) -> None:
    codes = random_codes(16, 120, np.uint16)[:count]
    packed = ops.pack_codes(codes, 16)
    assert same_bits(packed, ops.pack_codes(codes.astype(np.int32), 16))
    assert not packed[2 * count :].any()


@any_threads
def test_many_codes_on_any_threads() -> None:
    codes = random_codes(13, 70_001)
    packed = ops.pack_codes(codes, 13)
    assert same_bits(ops.unpack_codes(packed, 13, 3, 69_998), codes[3:])


PACKED = ops.pack_codes(np.arange(9, dtype=np.int32), 4)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: ops.pack_codes(np.zeros(3, np.int32), 0), "bits"),
        (lambda: ops.pack_codes(np.zeros(3, np.int32), 32), "bits"),
        (lambda: ops.pack_codes(np.array([0, 4], np.int32), 2), "codes"),
        (lambda: ops.pack_codes(np.array([-1], np.int32), 2), "codes"),
        (lambda: ops.unpack_codes(PACKED, 0, 0, 1), "bits"),
        (lambda: ops.unpack_codes(PACKED, 4, -1, 1), "first"),
        (lambda: ops.unpack_codes(PACKED, 4, 0, 11), "count"),  # ten fit the last byte
        (lambda: ops.unpack_codes(PACKED, 4, 11, 0), "first"),
        (lambda: ops.unpack_codes(PACKED, 4, 2**62, 2**20), "first"),
        (lambda: ops.unpack_codes(PACKED, 4, 0, -1), "count"),
        (lambda: ops.unpack_codes(PACKED[:10], 4, 0, 0), "count"),
    ],
)
def test_mistakes_are_named(call: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}`"):
        call()


@pytest.mark.parametrize("bits", [1, 7, 17, 31])
def test_pieces_do_not_show(bits: int) -> None:
    codes, packer = random_codes(bits, 100), CodePacker(bits)
    pieces = [packer.pack(piece) for piece in np.split(codes, [0, 3, 4, 20, 37, 37, 90])]
    packed = np.concatenate([*pieces, packer.finish()])
    assert same_bits(packed, ops.pack_codes(codes, bits))
    assert len(packed) == packed_bytes(100, bits)


def test_a_packed_column_is_read_by_slices() -> None:
    codes = random_codes(5, 90)
    column = PackedCodes(ops.pack_codes(codes, 5), 5, 90)
    assert len(column) == 90
    for rows in (slice(None), slice(3, 21), slice(80, 200), slice(-7, None), slice(9, 2)):
        assert same_bits(column[rows], codes[rows])
    with pytest.raises(ValueError, match="step of 2"):
        column[::2]


def test_bits_of_so_many_centroids() -> None:
    sizes = [1, 2, 3, 4, 5, 8192, 8193, 2**31]
    assert [code_bits(each) for each in sizes] == [1, 1, 2, 2, 3, 13, 14, 31]
