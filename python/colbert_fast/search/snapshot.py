"""One generation of an index, opened: what a search reads, whatever is committed meanwhile."""

from __future__ import annotations

import bisect
import functools
import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from colbert_fast.compress.codec import Codec, open_codec
from colbert_fast.errors import IndexFormatError
from colbert_fast.search.bm25 import BM25
from colbert_fast.search.tuning import Tuning
from colbert_fast.storage.codes import PackedCodes
from colbert_fast.storage.documents import DocumentId, DocumentStore
from colbert_fast.storage.files import check_checksums, check_sizes
from colbert_fast.storage.library import Library
from colbert_fast.storage.manifest import STORE, Manifest, SegmentRecord
from colbert_fast.storage.segments import Column, Segment, open_npy
from colbert_fast.storage.transactions import is_building

if TYPE_CHECKING:
    from colbert_fast.search.device import DeviceSearcher
    from colbert_fast.search.pipeline import Searcher

__all__ = ["Snapshot", "read_live"]

_ATTEMPTS = 100  # each lost to a commit in the milliseconds of an opening


class Snapshot:
    """The files of one generation, mapped and connected.

    Attributes
    ----------
    path
        The index folder.
    manifest
        What it said when this was opened.
    codec
        With the centroids.
    segments
        The arrays of each segment.
    library
        Ids, texts and metadata.
    live : bool (n_rows,)
        False where a document is deleted; None if none is.
    tuning
        What `read_tuning` read, or a later `tune` of the same reader found.
    device
        Where it searches: "cpu", or a CUDA device as torch names it.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        device: str = "cpu",
        *,
        before: Snapshot | None = None,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.device = device
        self.closed = False
        self.tuning: Tuning | None = None
        self._searcher: Searcher | DeviceSearcher | None = None
        self._making_searcher = threading.Lock()
        check_sizes(path, manifest.files)
        self.codec: Codec = (
            before.codec
            if before is not None and before.manifest.has_codec_of(manifest)
            else open_codec(
                path / manifest.codec_folder,
                manifest.codec,
                nbits=manifest.nbits,
                dim=manifest.dim,
                num_centroids=manifest.num_centroids,
            )
        )
        self.segments: Sequence[Segment] = [
            Segment.open(
                path / each.name,
                self.codec.columns(each.num_centroids),
                num_documents=each.num_documents,
                num_tokens=each.num_tokens,
                num_centroids=each.num_centroids,
            )
            for each in manifest.segments
        ]
        self.live = (
            read_live(path, manifest.segments)
            if any(each.num_deleted for each in manifest.segments)
            else None
        )
        self.library = Library(
            [
                DocumentStore(path / each.name / STORE, each.num_documents)
                for each in manifest.segments
            ],
            [each.num_documents for each in manifest.segments],
            self.live,
        )

    @classmethod
    def open(cls, path: Path, device: str = "cpu", *, before: Snapshot | None = None) -> Snapshot:
        """The newest generation of the index at `path`, to be searched on `device`.

        It has the centroids of the one `before` in memory if they are the same.

        Raises
        ------
        IndexFormatError
            There is no index, or a file is missing, truncated, foreign or of a newer version; the
            message names the file.
        """
        if is_building(path):
            raise IndexFormatError(f"{path}: an unfinished build; build the index again")
        for attempt in itertools.count(1):
            manifest = Manifest.read(path)
            try:
                return cls(path, manifest, device, before=before)
            except IndexFormatError:
                # A commit may have removed the files of a manifest that was read before it.
                if attempt == _ATTEMPTS or Manifest.read(path) == manifest:
                    raise
        raise AssertionError("not reached")

    @property
    def searcher(self) -> Searcher | DeviceSearcher:
        """The pipeline over all segments; for a GPU they are copied on first use, once."""
        with self._making_searcher:
            self.check_open()
            if self._searcher is None:
                self._searcher = self._make_searcher()
            return self._searcher

    def _make_searcher(self) -> Searcher | DeviceSearcher:
        if self.device != "cpu":
            from colbert_fast.search.device import DeviceSearcher

            return DeviceSearcher.of(self.segments, self.codec, self.device)
        from colbert_fast.search.pipeline import Searcher

        return Searcher.of(self.segments, self.codec)

    def read_tuning(self) -> Tuning | None:
        """What `tune` stored, for searches: it is read once."""
        if self.tuning is None:
            self.tuning = Tuning.read(self.path, self.manifest)
        if self.tuning is not None:
            self.tuning.check_growth(self.num_documents)
        return self.tuning

    @functools.cached_property
    def bm25(self) -> BM25:
        """The ranking of the stored texts."""
        return BM25([store.texts for store in self.library.stores])

    def verify_what_is_there(self) -> None:
        """`verify` this generation, or the newest if a commit has removed files of this one."""
        try:
            self.verify()
        except IndexFormatError:
            if Manifest.read(self.path).generation == self.manifest.generation:
                raise
            Snapshot.open(self.path).verify()
        Tuning.read(self.path, self.manifest)

    def check_codes(self) -> None:
        """Read all codes and check that each names a centroid."""
        for record, segment in zip(self.manifest.segments, self.segments, strict=True):
            segment.check_codes(self.path / record.name, record.num_centroids)

    def verify(self) -> None:
        """Read every file; see `IndexReader.verify`."""
        check_checksums(self.path, self.manifest.files)
        self.check_codes()
        self.library.check_unique()

    def bases(self) -> list[int]:
        """The position of each segment's first document, and the number of all positions."""
        return [0, *itertools.accumulate(each.num_documents for each in self.manifest.segments)]

    def live_of(self, number: int) -> npt.NDArray[np.bool_]:
        """Which documents of a segment are not deleted, bool (n_docs,)."""
        start, end = self.bases()[number : number + 2]
        return np.ones(end - start, np.bool_) if self.live is None else self.live[start:end]

    def allowed(self, subset: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_] | None:
        """`subset`, bool (n_rows,), less what is deleted; None if every document may be found."""
        if self.live is None or subset is None:
            return self.live if subset is None else subset
        return subset & self.live

    @functools.cached_property
    def ids(self) -> tuple[DocumentId, ...]:
        """The ids of the documents that are not deleted, by position; read on first use."""
        ids = self.library.ids
        return tuple(ids) if self.live is None else tuple(ids[at] for at in self.positions.tolist())

    @property
    def num_documents(self) -> int:
        """Documents that a search can find."""
        return self.manifest.num_documents

    @functools.cached_property
    def positions(self) -> npt.NDArray[np.int64]:
        """The positions of the documents that are not deleted, int64 (n_docs,), ascending."""
        if self.live is None:
            return np.arange(self.manifest.num_rows, dtype=np.int64)
        return np.flatnonzero(self.live)

    @functools.cached_property
    def doclens(self) -> npt.NDArray[np.int32]:
        """Tokens of each document, int32 (n_rows,)."""
        return np.concatenate([np.empty(0, np.int32), *(each.doclens for each in self.segments)])

    def decode(self, position: int) -> npt.NDArray[np.float32]:
        """The vectors of the document at `position` as they are stored, float32 (tokens, dim)."""
        number = bisect.bisect_right(self.bases(), position) - 1
        segment, base = self.segments[number], self.bases()[number]
        start = int(self._starts[position] - self._starts[base])
        rows = slice(start, start + int(self.doclens[position]))
        return self.codec.decode({name: each[rows] for name, each in segment.columns.items()})

    @functools.cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """The first token of each document, counted through the segments."""
        return np.cumsum(self.doclens, dtype=np.int64) - self.doclens

    def mapped(self) -> Iterator[npt.NDArray[Any]]:
        """The large arrays that searches read, all of them memory maps."""
        for segment in self.segments:
            yield segment.list_data
            for column in segment.columns.values():
                yield column.packed if isinstance(column, PackedCodes) else column

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"the open index {str(self.path)!r} cannot be pickled: pass the path to the other "
            "process and open it there"
        )

    def check_open(self) -> None:
        """Raise ValueError after `close`."""
        if self.closed:
            raise ValueError(f"the index {str(self.path)!r} is closed")

    def close(self) -> None:
        """Let go of the files; any later search raises ValueError."""
        with self._making_searcher:
            self.closed = True
            self.segments = ()
            self._searcher = None
        self.library.close()


def read_live(path: Path, segments: Sequence[SegmentRecord]) -> npt.NDArray[np.bool_]:
    """Which documents of the segments are not deleted, bool (n_rows,).

    Raises
    ------
    IndexFormatError
        A file of marks does not mark as many as it should; named.
    """
    parts = [np.empty(0, np.bool_)]
    for each in segments:
        live = np.ones(each.num_documents, np.bool_)
        if each.deleted is not None:
            rows = -(-each.num_documents // 8)
            bits = open_npy(path / each.deleted, Column(np.dtype(np.uint8)), rows)
            live = np.unpackbits(bits, count=each.num_documents) == 0
        if each.num_documents - np.count_nonzero(live) != each.num_deleted:
            raise IndexFormatError(
                f"{path / (each.deleted or each.name)}: does not mark {each.num_deleted} documents"
            )
        parts.append(live)
    return np.concatenate(parts)
