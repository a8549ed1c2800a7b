"""The query pipeline on a GPU, where the index lies as one collection."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from colbert_fast.kernels import backend, cuda, ops
from colbert_fast.kernels.cuda import check_device, import_torch, out_of_memory
from colbert_fast.storage.codes import CodePacker, code_bits

if TYPE_CHECKING:
    from colbert_fast.compress.codec import Codec
    from colbert_fast.search.params import SearchParams
    from colbert_fast.storage.segments import Segment

__all__ = ["DeviceSearcher"]

logger = logging.getLogger(__name__)

_BLOCK = 256  # queries at once, or as many as work in
_WORKSPACE = 1 << 30  # bytes
_ROOM = 8  # searches may have an eighth of the index's size; a query takes some hundredths of that
_COPIED = 1 << 26  # bytes that go to the device at once
_REPACKED = 1 << 22  # codes
_TILE = 32  # query tokens: queries are padded to a multiple
_MOST_TILES = 0xFFFF  # of all queries at once: a grid's rows
_LARGEST = 1e15  # value in a query, as on the CPU: so that no sum overflows

# Up to so many times ndocs documents are all scored in int8: about what it costs to find the ndocs
# best of them. Reckoned, not measured.
_SCANNED = 4


class DeviceSearcher:
    """`pipeline.Searcher` on a CUDA device.

    Scores are the same bits as the CPU's. Which documents get one differs in mode "default":
    centroids are probed by int8 scores, the best ndocs of all candidates by approximate scores get
    int8 scores, and the max(4 k, 128) best of these exact ones; up to 4 ndocs documents skip
    probing. Any number of threads may search; each search has its own memory on the device.

    Parameters
    ----------
    arrays
        What `_cuda.Searcher` reads, as tensors on the device; residuals or embeddings may be an
        array on the host, which is pinned and read over the bus.
    weights : float32 (2 ** nbits,) or (16,), or None
        As for `pipeline.Searcher`.
    """

    def __init__(self, arrays: dict[str, Any], weights: NDArray[np.float32] | None) -> None:
        self._device = arrays["centroids"].device
        self._num_centroids = arrays["centroids"].shape[0]
        self._num_documents = arrays["doclens"].shape[0]
        residuals = arrays["residuals"]
        self._int8 = residuals is not None and residuals.shape[1] < arrays["centroids"].shape[1]
        self._core = backend.cuda().Searcher(arrays, weights)

    @classmethod
    def of(cls, segments: Sequence[Segment], codec: Codec, device: str) -> DeviceSearcher:
        """The searcher over segments that `codec` encoded, copied to `device`.

        Where they do not fit, the residuals or embeddings stay on the host: but for exhaustive
        searches they are read of few documents only.

        Raises
        ------
        MemoryError
            The rest does not fit either, or the host has no room for them.
        """
        torch, where = import_torch(), check_device(device)
        host = _collection(segments, codec)
        padding = backend.cuda().list_padding
        vectors = "residuals" if host["embeddings"] is None else "embeddings"
        movable = _bytes_of(host[vectors])
        needed = sum(_bytes_of(each) for each in host.values()) + padding
        needed += codec.centroids.size + 4 * len(codec.centroids)  # the same as bytes
        with torch.cuda.device(where):
            free = _free_bytes(where)
            problem = (
                f"the index needs {needed:,} bytes on {where}, or {needed - movable:,} with its "
                f"{vectors} on the host; {free:,} are free: search on the CPU "
                '(device="cpu"), or on a GPU with more memory'
            )
            if needed - movable > free:
                raise MemoryError(problem)
            arrays: dict[str, Any] = {}
            if needed + needed // _ROOM > free:
                logger.warning(
                    "%s stay in the host's memory, since %s has %s bytes free, not %s and an "
                    "eighth more for work: searches take longer, exhaustive ones much longer",
                    *(vectors, where, f"{free:,}", f"{needed:,}"),
                )
                arrays[vectors] = np.concatenate(host.pop(vectors))
            with out_of_memory(lambda: problem):
                for name, each in host.items():
                    arrays[name] = _upload(each, where, padding if name == "data" else 0)
                arrays |= cuda.quantise_centroids(arrays["centroids"])._asdict()
            torch.cuda.synchronize(where)
            return cls(arrays, getattr(codec, "weights", None))

    def search(
        self,
        queries: Sequence[NDArray[np.float32]],
        params: SearchParams,
        *,
        subset: NDArray[np.bool_] | None = None,
        candidates: Sequence[NDArray[np.int64]] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Documents by descending MaxSim; arguments and results as for `pipeline.Searcher`.

        Raises
        ------
        ValueError
            Mode "plaid", more hits than can be sorted, or a query or candidate out of range.
        MemoryError
            The device has no room for the search.
        RuntimeError
            An inverted list is damaged.
        """
        if params.mode == "plaid" and candidates is None and not params.exhaustive:
            raise ValueError(
                'mode "plaid" runs on the CPU only: open the index with device="cpu", or leave '
                "the mode out"
            )
        _check_queries(queries)
        ids = np.full((len(queries), params.k), -1, np.int64)
        scores = np.full((len(queries), params.k), -np.inf, np.float32)
        allowed = self._num_documents if subset is None else int(np.count_nonzero(subset))
        if allowed == 0 or len(queries) == 0:
            return ids, scores
        if candidates is not None:
            self._check_candidates(candidates)
        shape = self._shape(params, allowed, given=candidates is not None)
        torch = import_torch()
        with torch.cuda.device(self._device):
            mask = None
            if subset is not None:
                with self._room_for("the documents of `subset`", len(subset)):
                    mask = self._tensor(subset)
            for block in self._blocks(queries, params.k, shape):
                given = None if candidates is None else candidates[block]
                found = self._search_block(queries[block], params.k, shape, mask, given)
                ids[block], scores[block] = found
        return ids, scores

    def _shape(self, params: SearchParams, allowed: int, *, given: bool) -> tuple[int, int, str]:
        """nprobe, ndocs and the kind of search."""
        scanned = given or allowed <= _SCANNED * params.ndocs
        kind = "exhaustive" if params.exhaustive else "scan" if scanned else "filter"
        if kind == "scan" and not self._int8:
            kind = "exhaustive"
        return min(params.nprobe, self._num_centroids), params.ndocs, kind

    def _blocks(
        self, queries: Sequence[NDArray[np.float32]], k: int, shape: tuple[int, int, str]
    ) -> Iterator[slice]:
        """Runs of queries whose workspace is of bearable size."""
        longest = _padded(queries)
        size = max(1, min(_BLOCK, len(queries), _MOST_TILES * _TILE // longest))
        # Half of what is free: other threads search too.
        most = min(_WORKSPACE, _free_bytes(self._device) // 2) if size > 1 else 0
        while size > 1 and self._core.workspace(size, longest, k, *shape) > most:
            size = (size + 1) // 2
        for start in range(0, len(queries), size):
            yield slice(start, start + size)

    def _search_block(
        self,
        queries: Sequence[NDArray[np.float32]],
        k: int,
        shape: tuple[int, int, str],
        mask: Any,
        candidates: Sequence[NDArray[np.int64]] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        torch, n, longest = import_torch(), len(queries), _padded(queries)
        rows = np.zeros((n, longest, queries[0].shape[1]), np.float32)
        for row, query in zip(rows, queries, strict=True):
            row[: len(query)] = query
        size = self._core.workspace(n, longest, k, *shape)
        with self._room_for(f"{n} queries", size):
            given = starts = None
            if candidates is not None:
                given = self._tensor(np.concatenate(candidates))
                ends = accumulate(map(len, candidates), initial=0)
                starts = self._tensor(np.array([*ends], np.int64))
            workspace = torch.empty(size, dtype=torch.uint8, device=self._device)
            ids = torch.empty((n, k), dtype=torch.int64, device=self._device)
            scores = torch.empty((n, k), dtype=torch.float32, device=self._device)
            damaged = torch.zeros(1, dtype=torch.int32, device=self._device)
            self._core.search(
                self._tensor(rows), *shape, mask, given, starts, workspace, ids, scores, damaged,
                torch.cuda.current_stream().cuda_stream,
            )  # fmt: skip
        if found := int(damaged.item()):
            raise RuntimeError(f"`parts[0].lists`: list {found - 1} is corrupt")
        return ids.cpu().numpy(), scores.cpu().numpy()

    def _room_for(self, what: str, n_bytes: int) -> AbstractContextManager[None]:
        return out_of_memory(
            lambda: (
                f"{what} need {n_bytes:,} bytes on {self._device}, of which "
                f"{_free_bytes(self._device):,} are free"
            )
        )

    def _tensor(self, array: NDArray[Any]) -> Any:
        return import_torch().from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _check_candidates(self, candidates: Sequence[NDArray[np.int64]]) -> None:
        for each in candidates:
            outside = each[(each < 0) | (each >= self._num_documents)]
            if len(outside):
                raise ValueError(
                    f"`candidates` must lie in [0, {self._num_documents}), got {outside[0]}"
                )


def _free_bytes(device: Any) -> int:
    """Memory of the device that torch can have, what it holds unused among it."""
    memory = import_torch().cuda
    free, _ = memory.mem_get_info(device)
    return int(free + memory.memory_reserved(device) - memory.memory_allocated(device))


def _check_queries(queries: Sequence[NDArray[np.float32]]) -> None:
    for number, query in enumerate(queries):
        if len(query) == 0:
            raise ValueError(f"`queries`: query {number} has no tokens")
        if not (np.abs(query) <= _LARGEST).all():
            raise ValueError(f"`queries` must be finite and at most {_LARGEST:g}: query {number}")


def _padded(queries: Sequence[NDArray[np.float32]]) -> int:
    """Tokens that each query gets: those of the longest, up to a multiple of a tile."""
    return -(-max(map(len, queries)) // _TILE) * _TILE


def _collection(segments: Sequence[Segment], codec: Codec) -> dict[str, Any]:
    """The arrays of `_cuda.Searcher` on the host; those of several parts as a list of these."""
    doclens = np.concatenate([each.doclens for each in segments])
    arrays: dict[str, Any] = {
        "centroids": codec.centroids,
        "doclens": doclens,
        "first": np.cumsum(doclens, dtype=np.int64) - doclens,
    }
    for name in ("residuals", "scales", "inverse_norms", "embeddings"):
        columns = [each.columns[name] for each in segments if name in each.columns]
        arrays[name] = columns or None
    k = len(codec.centroids)
    only = segments[0]
    if len(segments) == 1 and len(only.list_counts) == k:
        arrays["codes"] = only.codes.packed
        lists = ops.InvertedLists(only.list_counts, only.list_offsets, only.list_data)
    else:
        arrays["codes"] = _repacked(segments, k)
        counts, offsets, blocks = ops.stream_lists(arrays["codes"], code_bits(k), doclens, k)
        lists = ops.InvertedLists(counts, offsets, np.concatenate([*blocks]))
    return arrays | lists._asdict()


def _repacked(segments: Sequence[Segment], num_centroids: int) -> NDArray[np.uint8]:
    """The codes of all segments, in the bits that this many centroids need."""
    packer, packed = CodePacker(code_bits(num_centroids)), []
    for segment in segments:
        largest = np.int32(len(segment.list_counts) - 1)
        for start in range(0, len(segment.codes), _REPACKED):
            codes = segment.codes[start : start + _REPACKED]
            packed.append(packer.pack(np.minimum(codes, largest)))
    return np.concatenate([*packed, packer.finish()])


def _bytes_of(array: Any) -> int:
    if array is None:
        return 0
    return sum(map(_bytes_of, array)) if isinstance(array, list) else int(array.nbytes)


def _upload(array: Any, device: Any, padding: int) -> Any:
    """Rows on the device, with so many more of zeros. Maps are read a block at a time."""
    if array is None:
        return None
    torch, parts = import_torch(), array if isinstance(array, list) else [array]
    rows = sum(map(len, parts)) + padding
    dtype = torch.from_numpy(np.empty(0, parts[0].dtype)).dtype
    out = torch.empty((rows, *parts[0].shape[1:]), dtype=dtype, device=device)
    at, step = 0, max(1, _COPIED // max(1, parts[0][:1].nbytes))
    for part in parts:
        for start in range(0, len(part), step):
            block = np.array(part[start : start + step])
            out[at : at + len(block)] = torch.from_numpy(block).to(device)
            at += len(block)
    out[at:] = 0
    return out
