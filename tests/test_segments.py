"""Segment files: appended in pieces, mapped back, and checked against what they should be."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colbert_fast.errors import IndexFormatError
from colbert_fast.storage.segments import (
    Column,
    NpyWriter,
    Segment,
    SegmentWriter,
    open_npy,
    write_lists,
    write_npy,
)
from colbert_fast.storage.spill import Spill

IDS = Column(np.dtype(np.uint16))
BYTES = Column(np.dtype(np.uint8), (32,))
COLUMNS = {"codes": Column(np.dtype(np.int32), bits=2), "residuals": BYTES}
DOCLENS = np.array([3, 0, 4], np.int32)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, np.float16, np.float32])
@pytest.mark.parametrize("row", [(), (5,), (2, 3)])
def test_appended_files_are_ordinary_npy_files(
    tmp_path: Path, dtype: Any, row: tuple[int, ...]
) -> None:
    column = Column(np.dtype(dtype), row)
    pieces = [np.full((n, *row), n, dtype) for n in (3, 0, 1, 70)]
    writer = NpyWriter(tmp_path / "a.npy", column)
    for piece in pieces:
        writer.append(piece)
    writer.close()
    expected = np.concatenate(pieces)
    np.save(tmp_path / "b.npy", expected)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    for loaded in (
        np.load(tmp_path / "a.npy"),
        np.load(tmp_path / "a.npy", mmap_mode="r"),
        open_npy(tmp_path / "a.npy", column),
        open_npy(tmp_path / "a.npy", column, 74),
    ):
        assert loaded.dtype == expected.dtype
        np.testing.assert_array_equal(loaded, expected)


def test_an_empty_file_opens(tmp_path: Path) -> None:
    write_npy(tmp_path / "a.npy", np.zeros((0, 32), np.uint8))
    assert open_npy(tmp_path / "a.npy", BYTES).shape == (0, 32)


def test_mapped_arrays_are_aligned_and_read_only(tmp_path: Path) -> None:
    write_npy(tmp_path / "a.npy", np.ones(100, np.float32))
    array = open_npy(tmp_path / "a.npy", Column(np.dtype(np.float32)))
    assert array.ctypes.data % 64 == 0
    assert type(array) is np.ndarray
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2


def test_writer_takes_only_its_own_dtype_and_shape(tmp_path: Path) -> None:
    writer = NpyWriter(tmp_path / "a.npy", BYTES)
    with pytest.raises(TypeError, match=r"a\.npy: rows must be uint8"):
        writer.append(np.zeros((3, 32), np.int8))
    with pytest.raises(TypeError, match=r"a\.npy: rows must be uint8"):
        writer.append(np.zeros((3, 31), np.uint8))
    writer.abort()


def test_a_file_is_not_overwritten(tmp_path: Path) -> None:
    write_npy(tmp_path / "a.npy", np.zeros(3, np.uint8))
    with pytest.raises(FileExistsError):
        write_npy(tmp_path / "a.npy", np.zeros(3, np.uint8))


class FullDisk:
    """A file that takes no more bytes."""

    closed = False

    def write(self, _: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        self.closed = True


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    writer = NpyWriter(tmp_path / "a.npy", IDS)
    writer.abort()
    writer._file = FullDisk()  # type: ignore[assignment]
    with pytest.raises(OSError, match=r"No space left on device.*a\.npy") as caught:
        writer.append(np.zeros(3, np.uint16))
    assert caught.value.errno == errno.ENOSPC


def damaged(data: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "short header": data[:50],
        "no data": data[:128],
        "cut": data[:-1],
        "longer": data + b"x",
        "foreign": b"PK\x03\x04" + data[4:],
        "other header": data.replace(b"<u2", b"<i2"),
        "garbage": bytes(range(256)) * 10,
    }


@pytest.mark.parametrize("kind", damaged(b""))
def test_damaged_files_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "codes.npy"
    write_npy(path, np.arange(100, dtype=np.uint16))
    path.write_bytes(damaged(path.read_bytes())[kind])
    with pytest.raises(IndexFormatError) as caught:
        open_npy(path, IDS, 100)
    assert str(path) in str(caught.value)


def test_missing_and_mismatched_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "codes.npy"
    with pytest.raises(IndexFormatError, match=r"codes\.npy: No such file"):
        open_npy(path, IDS)
    write_npy(path, np.arange(100, dtype=np.uint16))
    for column, rows in ((IDS, 99), (Column(np.dtype(np.int32)), 100), (BYTES, None)):
        with pytest.raises(IndexFormatError, match=r"codes\.npy: not an \.npy file of"):
            open_npy(path, column, rows)


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    folder = tmp_path / "segment"
    with SegmentWriter(folder, COLUMNS) as writer:
        for doclens in (DOCLENS[:2], DOCLENS[2:]):
            n = int(doclens.sum())
            rows = {"codes": np.arange(n, dtype=np.int32), "residuals": np.ones((n, 32), np.uint8)}
            writer.append(rows, doclens)
        writer.close()
        assert (writer.num_documents, writer.num_tokens) == (3, 7)
    counts = np.array([2, 2, 2, 1], np.int32)
    write_lists(folder, counts, np.array([0, 2, 4, 6, 7]), [np.zeros(7, np.uint8)])
    return folder


def open_segment(folder: Path, **changes: int) -> Segment:
    sizes = {"num_documents": 3, "num_tokens": 7, "num_centroids": 4, **changes}
    return Segment.open(folder, COLUMNS, **sizes)


def test_segment_round_trip(segment: Path) -> None:
    opened = open_segment(segment)
    np.testing.assert_array_equal(opened.codes[:], [0, 1, 2, 0, 1, 2, 3])
    assert opened.columns["residuals"].shape == (7, 32)
    np.testing.assert_array_equal(opened.doclens, DOCLENS)
    np.testing.assert_array_equal(opened.list_counts, [2, 2, 2, 1])
    opened.check_codes(segment, 4, block=2)


@pytest.mark.parametrize("change", [{"num_documents": 4}, {"num_tokens": 8}, {"num_centroids": 5}])
def test_segment_of_other_sizes(segment: Path, change: dict[str, int]) -> None:
    with pytest.raises(IndexFormatError, match=r"\.npy: not an \.npy file of"):
        open_segment(segment, **change)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("doclens", np.array([3, 1, 4], np.int32)),
        ("doclens", np.array([4, -1, 4], np.int32)),
        ("list_counts", np.array([2, 2, 2, 4], np.int32)),
        ("list_counts", np.array([2, -2, 2, 1], np.int32)),
        ("list_offsets", np.array([0, 4, 2, 6, 7])),
        ("list_offsets", np.array([0, 2, 4, 6, 8])),
        ("list_offsets", np.array([1, 2, 4, 6, 7])),
    ],
)
def test_segment_that_contradicts_itself(segment: Path, name: str, array: np.ndarray) -> None:
    path = segment / f"{name}.npy"
    path.unlink()
    write_npy(path, array)
    with pytest.raises(IndexFormatError) as caught:
        open_segment(segment)
    assert str(path) in str(caught.value)


def test_codes_out_of_range(segment: Path) -> None:
    with pytest.raises(
        IndexFormatError, match=r"codes\.npy: a code outside 0\.\.2 within tokens 6"
    ):
        open_segment(segment).check_codes(segment, 3, block=2)


def test_writer_closes_its_files_when_the_build_fails(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path / "segment", COLUMNS)
    with pytest.raises(KeyboardInterrupt), writer:
        raise KeyboardInterrupt
    assert all(each._file.closed for each in writer._writers.values())


def test_spill_gives_back_what_it_took(tmp_path: Path, rng: np.random.Generator) -> None:
    chunks = []
    for doclens in ([2, 3], [1], [4, 1, 1]):
        rows = rng.standard_normal((sum(doclens), 8)).astype(np.float16)
        chunks.append((rows, np.array(doclens, np.int32)))
    with Spill(tmp_path / "spill") as spill:
        for rows, doclens in chunks:
            spill.append(rows, doclens)
        assert (spill.num_tokens, spill.num_documents, spill.dim) == (12, 6, 8)
        for (rows, doclens), (got_rows, got_doclens) in zip(chunks, spill.chunks(), strict=True):
            np.testing.assert_array_equal(rows, got_rows)
            np.testing.assert_array_equal(doclens, got_doclens)
        everything = np.concatenate([rows for rows, _ in chunks])
        sample = spill.sample(np.random.default_rng(0), 6, 100)
        assert sorted(map(bytes, sample)) == sorted(map(bytes, everything))
        assert spill.sample(np.random.default_rng(0), 2, 100).shape[0] <= 7
        np.testing.assert_array_equal(spill.sample(np.random.default_rng(0), 6, 5), sample[:5])
    assert not (tmp_path / "spill").exists()


def test_spill_names_its_file_on_a_full_disk(tmp_path: Path) -> None:
    with Spill(tmp_path / "spill") as spill:
        spill._file.close()
        spill._file = FullDisk()  # type: ignore[assignment]
        with pytest.raises(OSError, match=r"No space left.*spill"):
            spill.append(np.zeros((1, 8), np.float16), np.array([1], np.int32))
