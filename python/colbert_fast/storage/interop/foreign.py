"""What the index of another library is to us, and the checks that every reader of one makes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from colbert_fast.errors import IndexFormatError
from colbert_fast.kernels import ops
from colbert_fast.storage.documents import DocumentId

__all__ = [
    "ForeignChunk",
    "ForeignIndex",
    "ForeignLayout",
    "check_chunk",
    "check_codec",
    "count_of",
    "open_array",
    "read_doclens",
    "read_object",
]

ForeignLayout = Literal["stanford", "fast-plaid", "next-plaid", "warp"]

_BLOCK = 1 << 22  # codes checked at a time
_NBITS = (1, 2, 4, 8)  # of which a byte holds a whole number


class ForeignChunk(NamedTuple):
    """Whole documents, as the files have them.

    `codes` are int32 or int64 (n_tokens,), `residuals` uint8 (n_tokens, dim * nbits / 8), `doclens`
    int64 (n_docs,) and `pids`, the library's numbers of the documents, int64 (n_docs,), ascending.
    """

    codes: npt.NDArray[Any]
    residuals: npt.NDArray[np.uint8]
    doclens: npt.NDArray[np.int64]
    pids: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class ForeignIndex:
    """An opened index of another library whose codec is PLAID's.

    Attributes
    ----------
    layout, path
    centroids : float16 or float32 (K, dim), as stored
    cutoffs : float32 (2**nbits - 1,)
    weights : float32 (2**nbits,)
    nbits : int
    num_documents : int
        Including deleted ones, of which only the numbers are left.
    model : str or None
        The checkpoint that the index names.
    read : function without arguments
        Streams the `ForeignChunk`s, checked, with ascending pids.
    ids : list of str and int, or None
        By the numbers of the documents, where the index has names for them.
    """

    layout: ForeignLayout
    path: Path
    centroids: npt.NDArray[Any]
    cutoffs: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    nbits: int
    num_documents: int
    model: str | None
    read: Callable[[], Iterator[ForeignChunk]]
    ids: list[DocumentId] | None = None

    def chunks(self, most: int = 1 << 20) -> Iterator[ForeignChunk]:
        """The chunks, cut to about `most` tokens.

        Documents without tokens, deleted ones in Stanford's layout, are left out.
        """
        for whole in self.read():
            ends = np.cumsum(whole.doclens)
            first = 0
            while first < len(ends):
                start = int(ends[first] - whole.doclens[first])
                last = max(first + 1, int(np.searchsorted(ends, start + most, "right")))
                rows, documents = slice(start, int(ends[last - 1])), slice(first, last)
                full = whole.doclens[documents] > 0
                yield ForeignChunk(
                    whole.codes[rows],
                    whole.residuals[rows],
                    whole.doclens[documents][full],
                    whole.pids[documents][full],
                )
                first = last


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; IndexFormatError naming the file if it is none."""
    contents = _read_json(path)
    if not isinstance(contents, dict):
        raise IndexFormatError(f"{path}: expected a JSON object, got {type(contents).__name__}")
    return contents


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise IndexFormatError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise IndexFormatError(f"{path}: cannot be read as JSON ({error})") from error


def count_of(contents: dict[str, Any], key: str, path: Path, *, least: int = 0) -> int:
    """A whole number of at least `least` in a JSON object."""
    value = contents.get(key)
    if type(value) is not int or not least <= value < 1 << 40:
        raise IndexFormatError(f'{path}: "{key}" must be an int from {least} on, got {value!r}')
    return value


def read_doclens(path: Path) -> npt.NDArray[np.int64]:
    """A JSON list of the tokens of each document."""
    values = _read_json(path)
    if not isinstance(values, list) or not all(
        type(value) is int and 0 <= value < 1 << 31 for value in values
    ):
        raise IndexFormatError(f"{path}: expected a list of document lengths")
    return np.array(values, np.int64)


def open_array(path: Path, kinds: str, shape: tuple[int | None, ...]) -> npt.NDArray[Any]:
    """Map an .npy file of another library.

    Parameters
    ----------
    path
        The file.
    kinds
        Its dtype must be one of these, as ``"f2 f4"``; little-endian.
    shape
        None stands for any length.

    Raises
    ------
    IndexFormatError
        The file is missing, damaged, holds Python objects, or is of another dtype or shape; named.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise IndexFormatError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # numpy's parser of headers raises many kinds
        raise IndexFormatError(f"{path}: not a whole .npy file of numbers ({error})") from error
    if not isinstance(array, np.ndarray):
        raise IndexFormatError(f"{path}: an archive, not an .npy file")
    check_array(path, array, kinds, shape)
    plain: npt.NDArray[Any] = array.view(np.ndarray)
    return plain


def check_array(
    path: Path, array: npt.NDArray[Any], kinds: str, shape: tuple[int | None, ...]
) -> None:
    """IndexFormatError naming the file, unless the array is as `open_array` wants it."""
    fits = len(shape) == array.ndim and all(
        wanted in (None, length) for wanted, length in zip(shape, array.shape, strict=True)
    )
    known = array.dtype.str[1:] in kinds.split() and array.dtype.isnative
    if not fits or not known or not array.flags.c_contiguous:
        sizes = ", ".join("n" if length is None else str(length) for length in shape)
        raise IndexFormatError(
            f"{path}: expected {' or '.join(kinds.split())} ({sizes}), "
            f"got {array.dtype.str[1:]} {array.shape}"
        )


def check_codec(
    centroids: tuple[Path, npt.NDArray[Any]],
    cutoffs: tuple[Path, npt.NDArray[Any]],
    weights: tuple[Path, npt.NDArray[Any]],
    nbits: int | None = None,
) -> int:
    """Check that the parts of a codec, each with its file, fit each other; returns nbits."""
    path, rows = centroids
    check_array(path, rows, "f2 f4", (None, None))
    dim = rows.shape[1]
    if not len(rows) or dim % 8 or not 8 <= dim <= ops.MAX_DIM:
        raise IndexFormatError(f"{path}: shape {rows.shape}; dim must be 8, 16, .. {ops.MAX_DIM}")
    found = max(len(weights[1]), 1).bit_length() - 1
    if found not in _NBITS or nbits not in (None, found):
        wanted = "2, 4, 16 or 256" if nbits is None else f"2**{nbits}"
        raise IndexFormatError(f"{weights[0]}: {len(weights[1])} bucket weights, wanted {wanted}")
    check_array(weights[0], weights[1], "f2 f4", (1 << found,))
    check_array(cutoffs[0], cutoffs[1], "f2 f4", ((1 << found) - 1,))
    for path, values in (centroids, cutoffs, weights):
        if not np.isfinite(values).all():
            raise IndexFormatError(f"{path}: holds values that are not finite")
    for path, values in (cutoffs, weights):
        if (values[1:] < values[:-1]).any():
            raise IndexFormatError(f"{path}: the values do not ascend")
    return found


def check_chunk(
    chunk: ForeignChunk, num_centroids: int, width: int, *, codes: Path, residuals: Path
) -> ForeignChunk:
    """The chunk, if every code names a centroid and its arrays belong together.

    `width` is the bytes of a residual; the paths are those of the two files.
    """
    tokens = int(chunk.doclens.sum())
    check_array(codes, chunk.codes, "i4 i8", (tokens,))
    check_array(residuals, chunk.residuals, "u1", (tokens, width))
    for start in range(0, tokens, _BLOCK):
        part = chunk.codes[start : start + _BLOCK]
        if part.min() < 0 or part.max() >= num_centroids:
            raise IndexFormatError(
                f"{codes}: a code outside 0..{num_centroids - 1} within tokens "
                f"{start}..{start + len(part) - 1}"
            )
    return chunk
