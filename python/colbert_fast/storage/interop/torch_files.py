"""Read and write the tensors of .pt files without torch, and without running what is in them.

A .pt file (torch 1.6 or newer) is a zip archive, nothing compressed: ``<name>/data.pkl`` pickles
the structure, in which every storage is a reference to ``<name>/data/<key>``, its bytes. A pickle
may call anything that it can name, so here it can name nothing: what a tensor is made of becomes a
plain description, every other name is refused, and arrays are made of the descriptions afterwards.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from colbert_fast.errors import IndexFormatError

__all__ = ["read_tensors", "write_tensors"]

_DTYPES: dict[str, np.dtype[Any]] = {
    "ByteStorage": np.dtype(np.uint8),
    "IntStorage": np.dtype("<i4"),
    "LongStorage": np.dtype("<i8"),
    "HalfStorage": np.dtype("<f2"),
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
}
_MAX_PICKLE = 1 << 16  # a few tensors take some hundred bytes
_MAX_TENSORS = 8
_MAX_MEMO = 1 << 16  # the unpickler makes a table as large as the largest index
# What torch.save writes tensors with, in protocol 2.
# fmt: off
_OPCODES = frozenset((
    "APPEND", "APPENDS", "BINGET", "BININT", "BININT1", "BININT2", "BINPERSID", "BINPUT",
    "BINUNICODE", "EMPTY_LIST", "EMPTY_TUPLE", "GLOBAL", "LONG1", "LONG_BINGET", "LONG_BINPUT",
    "MARK", "NEWFALSE", "NEWTRUE", "PROTO", "REDUCE", "STOP", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
))
# fmt: on
_LOCAL_HEADER = 30  # bytes before the name of a zip entry
_CRC_BLOCK = 1 << 24


class _Storage(NamedTuple):
    kind: str
    key: str
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Finds strings for the types of storages, and two functions of this module."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _describe_tensor
        if (module, name) == ("collections", "OrderedDict"):  # of hooks, always empty
            return _no_hooks
        if module == "torch" and name in _DTYPES:
            return name
        raise pickle.UnpicklingError(f"it names {module}.{name}, of which no tensor is made")

    def persistent_load(self, pid: Any) -> _Storage:
        if isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage":
            _, kind, key, _, size = pid
            if kind in _DTYPES and isinstance(key, str) and _is_count(size):
                return _Storage(kind, key, size)
        raise pickle.UnpicklingError("a reference is none to a storage")


def _unpickle(pickled: bytes) -> Any:
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name not in _OPCODES:
            raise pickle.UnpicklingError(f"no tensor is pickled with the opcode {opcode.name}")
        if opcode.name == "LONG_BINPUT" and (argument or 0) >= _MAX_MEMO:
            raise pickle.UnpicklingError(f"the memo index {argument} is not that of a few tensors")
    return _Unpickler(io.BytesIO(pickled)).load()


def _no_hooks() -> None:
    return None


def _describe_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any, hooks: Any
) -> _Tensor:
    counts = isinstance(shape, tuple) and isinstance(stride, tuple)
    if not (
        isinstance(storage, _Storage)
        and counts
        and len(shape) == len(stride)
        and all(map(_is_count, (offset, *shape, *stride)))
        and requires_grad in (True, False)
        and hooks is None
    ):
        raise pickle.UnpicklingError("a tensor is not described as torch does")
    return _Tensor(storage, offset, shape, stride)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def read_tensors(path: Path) -> list[npt.NDArray[Any]]:
    """Map the tensors of a .pt file that holds one, or a tuple or list of a few.

    Returns
    -------
    list of read-only arrays
        uint8, int32, int64 or floats; on whatever device they were. Their bytes have been compared
        with the archive's checksums.

    Raises
    ------
    IndexFormatError
        The file is missing, damaged, of an older torch, or holds anything else; named.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            root = _root_of(path, entries)
            order = entries.get(f"{root}/byteorder")
            if order is not None and _read_small(archive, order) != b"little":
                raise IndexFormatError(f"{path}: its numbers are not little-endian")
            found = _unpickle(_read_small(archive, entries[f"{root}/data.pkl"]))
        tensors = list(found) if type(found) in (tuple, list) else [found]
        if not 0 < len(tensors) <= _MAX_TENSORS or not all(type(t) is _Tensor for t in tensors):
            raise IndexFormatError(f"{path}: holds something other than a few tensors")
        return [_map_tensor(path, tensor, entries, root) for tensor in tensors]
    except IndexFormatError:
        raise
    except zipfile.BadZipFile as error:
        raise IndexFormatError(
            f"{path}: no whole .pt archive, or one of torch before 1.6 ({error})"
        ) from error
    except OSError as error:
        raise IndexFormatError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle makes the unpickler raise nearly anything
        raise IndexFormatError(f"{path}: refused: {error}") from error


def _root_of(path: Path, entries: dict[str, zipfile.ZipInfo]) -> str:
    for name in entries:
        if name.endswith("/data.pkl") and name.count("/") == 1:
            return name.removesuffix("/data.pkl")
    raise IndexFormatError(f"{path}: no data.pkl in the archive: not a .pt file")


def _read_small(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > _MAX_PICKLE or info.compress_type != zipfile.ZIP_STORED:
        raise IndexFormatError(f"{archive.filename}: {info.filename} is not that of a few tensors")
    return archive.read(info)


def _map_tensor(
    path: Path, tensor: _Tensor, entries: dict[str, zipfile.ZipInfo], root: str
) -> npt.NDArray[Any]:
    storage, dtype = tensor.storage, _DTYPES[tensor.storage.kind]
    info = entries.get(f"{root}/data/{storage.key}")
    if info is None:
        raise IndexFormatError(f"{path}: the storage {storage.key!r} is missing")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != storage.size * dtype.itemsize:
        raise IndexFormatError(
            f"{path}: {info.filename} has {info.file_size} bytes, not {storage.size} x {dtype}"
        )
    expected, count = [], 1
    for length in reversed(tensor.shape):
        expected.append(count)
        count *= length
    pairs = zip(tensor.shape, tensor.stride, reversed(expected), strict=True)
    if any(length > 1 and stride != whole for length, stride, whole in pairs):
        raise IndexFormatError(f"{path}: a tensor is not contiguous")
    if tensor.offset + count > storage.size:
        raise IndexFormatError(f"{path}: a tensor reaches beyond its storage")
    if count == 0:
        return np.empty(tensor.shape, dtype)
    stored = _map_entry(path, info)
    whole = stored.view(dtype) if stored.ctypes.data % dtype.itemsize == 0 else _copy(stored, dtype)
    array: npt.NDArray[Any] = whole[tensor.offset : tensor.offset + count].reshape(tensor.shape)
    return array


def _copy(stored: npt.NDArray[np.uint8], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Of a storage that does not lie as torch aligns it."""
    return np.frombuffer(stored.tobytes(), dtype)


def _map_entry(path: Path, info: zipfile.ZipInfo) -> npt.NDArray[np.uint8]:
    """The bytes of a stored entry, compared with its checksum."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER)
        end = file.seek(0, io.SEEK_END)
    if len(header) < _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        raise IndexFormatError(f"{path}: no entry where the archive has {info.filename}")
    name, extra = struct.unpack("<HH", header[26:30])
    start = info.header_offset + _LOCAL_HEADER + name + extra
    if start + info.file_size > end:
        raise IndexFormatError(f"{path}: {info.filename} reaches beyond the file: truncated")
    mapped = np.memmap(path, np.uint8, "r", start, (info.file_size,)).view(np.ndarray)
    value = 0
    for begin in range(0, len(mapped), _CRC_BLOCK):
        value = zlib.crc32(mapped[begin : begin + _CRC_BLOCK].data, value)
    if value != info.CRC:
        raise IndexFormatError(f"{path}: {info.filename} does not match its checksum: damaged")
    return mapped


def write_tensors(path: Path, arrays: Sequence[npt.NDArray[Any]], *, as_tuple: bool) -> None:
    """Write arrays as torch.save writes CPU tensors: the only one, or a tuple of them.

    Parameters
    ----------
    path
        The file; it must not exist.
    arrays
        uint8, int32, int64, float16 or float32, C-contiguous.
    as_tuple
        Whether the file holds a tuple. Otherwise `arrays` must be one.
    """
    if not as_tuple and len(arrays) != 1:
        raise ValueError(f"arrays: one goes into a file without a tuple, got {len(arrays)}")
    root = path.stem
    body = b"".join(_pickle_tensor(str(key), array) for key, array in enumerate(arrays))
    body = b"(" + body + b"t" if as_tuple else body
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED, allowZip64=True) as archive:
        # A ZipInfo has a fixed date: the same arrays give the same file.
        archive.writestr(zipfile.ZipInfo(f"{root}/data.pkl"), b"\x80\x02" + body + b".")
        archive.writestr(zipfile.ZipInfo(f"{root}/byteorder"), b"little")
        for key, array in enumerate(arrays):
            info = zipfile.ZipInfo(f"{root}/data/{key}")
            with archive.open(info, "w", force_zip64=True) as file:
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        archive.writestr(zipfile.ZipInfo(f"{root}/version"), b"3\n")


def _pickle_tensor(key: str, array: npt.NDArray[Any]) -> bytes:
    """The call of torch._utils._rebuild_tensor_v2 that makes a tensor of the storage `key`."""
    kinds = [kind for kind, dtype in _DTYPES.items() if dtype == array.dtype]
    if not kinds:
        raise TypeError(f"arrays: {array.dtype} is not written")
    strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
    storage = b"(%b%b%b%b%bt" % (
        _text("storage"),
        b"ctorch\n%b\n" % kinds[0].encode(),
        _text(key),
        _text("cpu"),
        _int(array.size),
    )
    return b"ctorch._utils\n_rebuild_tensor_v2\n(%bQ%b%b%b\x89ccollections\nOrderedDict\n)RtR" % (
        storage,
        _int(0),
        b"(" + b"".join(map(_int, array.shape)) + b"t",
        b"(" + b"".join(map(_int, strides)) + b"t",
    )


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _int(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)
