"""Files of tensors: torch reads ours, we read torch's, and nothing in one is ever executed."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colbert_fast import Index
from colbert_fast.errors import IndexFormatError
from colbert_fast.storage.interop.torch_files import read_tensors, write_tensors
from foreign_indexes import INDEX


def test_torch_loads_what_is_written(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    arrays: list[np.ndarray] = [
        np.arange(12, dtype=np.float16).reshape(3, 4),
        np.array(0.5, np.float32),
        np.arange(300, dtype=np.int64),
        np.empty((0, 4), np.uint8),
        np.arange(5, dtype=np.int32),
    ]
    write_tensors(tmp_path / "tuple.pt", arrays, as_tuple=True)
    loaded = torch.load(tmp_path / "tuple.pt", weights_only=True)
    assert isinstance(loaded, tuple)
    for tensor, array, ours in zip(
        loaded, arrays, read_tensors(tmp_path / "tuple.pt"), strict=True
    ):
        assert tensor.numpy().dtype == ours.dtype == array.dtype
        np.testing.assert_array_equal(tensor.numpy(), array)
        np.testing.assert_array_equal(ours, array)


def test_what_torch_writes_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32)
    for count in (1, 8):
        torch.save([base.clone() for _ in range(count)], tmp_path / "list.pt")
        assert len(read_tensors(tmp_path / "list.pt")) == count
    torch.save((base[4:12].reshape(2, 4), base[12:]), tmp_path / "views.pt")
    first, second = read_tensors(tmp_path / "views.pt")
    np.testing.assert_array_equal(first, base[4:12].reshape(2, 4).numpy())
    np.testing.assert_array_equal(second, base[12:].numpy())
    for name, value in (
        ("strided", base[::2]),
        ("number", 3.0),
        ("many", [base] * 9),
        ("dict", {"a": base}),
        ("bfloat16", base.bfloat16()),
    ):
        torch.save(value, tmp_path / f"{name}.pt")
        with pytest.raises(IndexFormatError, match=f"{name}.pt"):
            read_tensors(tmp_path / f"{name}.pt")
    torch.save(base, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(IndexFormatError, match=r"old.pt: no whole .pt archive.*before 1.6"):
        read_tensors(tmp_path / "old.pt")


class Attack:
    """Pickled as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "function", [os.system, eval, exec, __import__, getattr, pickle.loads], ids=str
)
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, function: Any) -> None:
    folder = tmp_path / "foreign"
    shutil.copytree(INDEX, folder)
    marker = tmp_path / "executed"
    with zipfile.ZipFile(folder / "centroids.pt", "w") as archive:
        attack = pickle.dumps(Attack(function, f"touch {marker}"), protocol=2)
        archive.writestr("centroids/data.pkl", attack)
        archive.writestr("centroids/version", b"3\n")
    with pytest.raises(IndexFormatError, match=r"centroids.pt: refused: it names \w+\.\w+"):
        Index.import_from(folder, tmp_path / "index", progress=False)
    assert not marker.exists()
    assert not (tmp_path / "index").exists()


TENSOR = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
)
HOOKS = b"\x89ccollections\nOrderedDict\n)RtR."


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (TENSOR + STORAGE + b"K\x00(K\x05t(K\x01t" + HOOKS, "beyond its storage"),
        (TENSOR + STORAGE + b"K\x02(K\x03t(K\x01t" + HOOKS, "beyond its storage"),
        (TENSOR + STORAGE + b"K\x00(K\x04t(K\x00t" + HOOKS, "not contiguous"),
        (TENSOR + STORAGE + b"J\xff\xff\xff\xff(K\x01t(K\x01t" + HOOKS, "not described"),
        (TENSOR + STORAGE + b"K\x00(\x8a\x09" + b"\xff" * 8 + b"\x00t(K\x01t" + HOOKS, "described"),
        (TENSOR + b"\x88K\x00(K\x01t(K\x01t" + HOOKS, "not described"),
        (TENSOR + STORAGE.replace(b"K\x04", b"K\x05") + b"K\x00(K\x01t(K\x01t" + HOOKS, "not 5 x"),
        (TENSOR + STORAGE.replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x001") + HOOKS, ""),
        (b"\x80\x02K\x01Q.", "none to a storage"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n.", "other than a few tensors"),
        (b"\x80\x02K\x05r\xff\xff\xff\x07.", "the memo index 134217727"),
        (pickle.dumps(os.system, protocol=4), "no tensor is pickled with the opcode FRAME"),
        (b"\x80\x02}.", "no tensor is pickled with the opcode EMPTY_DICT"),
        (b"\x80\x02(((((.", ""),
        (b"", ""),
    ],
)
def test_a_tensor_described_wrongly_is_refused(tmp_path: Path, body: bytes, message: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", body)
        archive.writestr("x/data/0", np.arange(4, dtype=np.float32).tobytes())
    with pytest.raises(IndexFormatError, match=f"x.pt: .*{message}"):
        read_tensors(tmp_path / "x.pt")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.pt", [np.zeros(1000, np.float32)], as_tuple=False)
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as archive,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for info in archive.infolist():
            packed.writestr(info.filename, archive.read(info))
    with pytest.raises(IndexFormatError, match=r"y\.pt"):
        read_tensors(tmp_path / "y.pt")


def test_flipped_bits_in_archives_are_found(tmp_path: Path) -> None:
    """Every flip in a file of tensors is refused, or one in what nobody reads."""
    rng = np.random.default_rng(0)
    for file in sorted(INDEX.glob("*.pt")):
        whole, expected = file.read_bytes(), read_tensors(file)
        for place in rng.integers(0, len(whole), 150).tolist():
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(rng.integers(8))
            (tmp_path / file.name).write_bytes(damaged)
            try:
                found = read_tensors(tmp_path / file.name)
            except IndexFormatError:
                continue
            assert len(found) == len(expected)
            for ours, theirs in zip(found, expected, strict=True):
                assert ours.dtype == theirs.dtype
                np.testing.assert_array_equal(ours, theirs)
