"""The public index: build it, open it, search it."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from colbert_fast.compress.codec import open_codec
from colbert_fast.errors import IndexFormatError
from colbert_fast.search.params import Mode, SearchOptions, SearchParams
from colbert_fast.search.queries import check_vectors, load_model, read_queries, read_subset
from colbert_fast.search.results import Hit, make_hits
from colbert_fast.search.retrieve import retrieve
from colbert_fast.search.tuning import Tuning
from colbert_fast.storage.documents import DocumentId, DocumentStore
from colbert_fast.storage.manifest import STORE, CodecName, Manifest
from colbert_fast.storage.segments import Segment
from colbert_fast.storage.transactions import is_building

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from colbert_fast.model import ColBERT
    from colbert_fast.search.pipeline import Searcher

__all__ = ["Index"]


class Index:
    """A searchable collection on disk; see `Index.build` and `Index.open`.

    An index is read-only and can be shared between threads. Use it as a context manager, or call
    `close`, to let go of its files.
    """

    def __init__(self, path: Path, *, model: ColBERT | None = None) -> None:
        self._path = path
        self._model = model
        self._manifest = manifest = Manifest.read(path)
        manifest.check_sizes(path)
        if model is not None:
            manifest.check_model(model)
        self._codec = open_codec(
            path,
            manifest.codec,
            nbits=manifest.nbits,
            dim=manifest.dim,
            num_centroids=manifest.num_centroids,
        )
        self._segment: Segment | None = Segment.open(
            self._segment_path,
            self._codec.columns,
            num_documents=manifest.num_documents,
            num_tokens=manifest.num_tokens,
            num_centroids=manifest.num_centroids,
        )
        self._store = DocumentStore(path / STORE, manifest.num_documents)

    @classmethod
    def build(
        cls,
        path: str | os.PathLike[str],
        documents: Iterable[Any],
        *,
        model: ColBERT | None = None,
        ids: Iterable[DocumentId] | None = None,
        nbits: int = 2,
        codec: CodecName = "default",
        num_centroids: int | None = None,
        kmeans_iterations: int = 4,
        seed: int = 42,
        pool_factor: int = 1,
        overwrite: bool = False,
        progress: bool = True,
    ) -> Index:
        """Build an index in one pass over the documents, and open it.

        The index appears at `path` complete or not at all. Memory stays under 1.5 GB at 128
        dimensions up to about 100 million tokens; each further token takes about 10 bytes, while
        the inverted lists are made.

        Centroids are fitted on a sample of the first 16 million tokens. If more come and they are
        sorted, as by topic or date, shuffle the documents first.

        Parameters
        ----------
        path
            Folder to create; its parent must exist.
        documents
            Any iterable, read once. Each item is a text; ``(id, text)``; a dict with "text" and
            any of "id" and further keys, kept as metadata; or token embeddings: a (tokens, dim)
            array or tensor of floats, alone, as ``(id, embeddings)`` or as "embeddings" in a dict.
            Embeddings are stored as unit vectors: rows of another length are normalised.
        model
            Encodes texts. Not needed for embeddings; then it is only noted for later searches.
        ids
            One id (str or int) per document, for documents that carry none. By default they are
            numbered from 0.
        nbits
            Bits per dimension of a residual: 1, 2, 3, 4 or 8.
        codec
            "default": centroid, `nbits` bits per dimension coded by a trellis, and a byte of scale
            per token. "plaid": the bits mean PLAID's levels, quantiles; a byte less per token, and
            less exact. "float16": the vectors themselves, 2 bytes per dimension, as ColBERT v1 kept
            them.
        num_centroids
            By default 2^floor(log2(16 * sqrt(tokens))), at most the tokens sampled, and at most
            one for 32 of them where they are a part of the collection.
        kmeans_iterations
            Lloyd steps.
        seed
            Of sampling and k-means: the same documents and seed give the same files.
        pool_factor
            Merge this many token vectors of a document into one, on average (1: none), by
            clustering (arXiv 2409.14683). The first one, [CLS] in ColBERT's embeddings, stays.
        overwrite
            Replace an index that is at `path`; it stays as it is until the new one is complete.
        progress
            Show progress bars on stderr.

        Raises
        ------
        ValueError, TypeError
            An argument, a document, an id or a vector is not acceptable; documents are named by id.
        IndexExistsError
            Something is at `path` already and `overwrite` is false, or it is not an index.
        FileNotFoundError
            The parent folder of `path` does not exist.
        OSError
            Writing failed, as on a full disk; nothing is left behind.
        """
        from colbert_fast.build import BuildOptions, build_index  # searching needs no build code

        options = BuildOptions(
            nbits=nbits,
            codec=codec,
            num_centroids=num_centroids,
            kmeans_iterations=kmeans_iterations,
            seed=seed,
            pool_factor=pool_factor,
            overwrite=overwrite,
            progress=progress,
        )
        build_index(Path(path).absolute(), documents, options, model=model, ids=ids)
        return cls.open(path, model=model)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, model: ColBERT | None = None) -> Index:
        """Open an index by mapping its files; only centroids and document lengths are read.

        What can be told from sizes, headers and lengths is checked here, and the range of the
        codes (2 or 4 bytes per token) by the first search. Other flipped bits are not: call
        `verify` once on an index that comes from elsewhere or from a disk you doubt.

        Parameters
        ----------
        path
            The index folder.
        model
            Encodes text queries. By default the model that the index was built with is loaded
            when the first text query comes.

        Raises
        ------
        IndexFormatError
            There is no index, or a file is missing, truncated, foreign or of a newer version; the
            message names the file.
        ValueError
            The model's dim is not the index's, or its weights are not those that the index was
            built with.
        """
        folder = Path(path).absolute()
        if is_building(folder):
            raise IndexFormatError(f"{folder}: an unfinished build; build the index again")
        return cls(folder, model=model)

    @overload
    def search(self, query: str, k: int = ..., **options: Unpack[SearchOptions]) -> list[Hit]: ...
    @overload
    def search(self, query: Any, k: int = ..., **options: Unpack[SearchOptions]) -> list[Any]: ...
    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        nprobe: int | None = None,
        ndocs: int | None = None,
        centroid_score_threshold: float | None = None,
        subset: Iterable[DocumentId] | npt.NDArray[np.bool_] | None = None,
        mode: Mode = "default",
        exhaustive: bool = False,
        recall: float | None = None,
    ) -> list[Any]:
        """Find the `k` best documents, best first.

        Parameters
        ----------
        query
            One query (a text, or embeddings (tokens, dim)) gives a list of `Hit`s; a list of them,
            or an array (n, tokens, dim), gives a list of such lists. Embeddings are used as they
            are: unit vectors give the scores that text queries give.
        k
            Hits wanted; all documents if there are fewer.
        nprobe, ndocs, centroid_score_threshold, mode, exhaustive
            See `SearchParams`; the defaults depend on `mode` and `k`.
        subset
            Search only these: ids, or a boolean mask (n_docs,) by position.
        recall
            Instead of nprobe and ndocs: the share of the true `k` best to find, at the least cost
            that `tune` measured for it. Of a `subset` it may find less.

        Raises
        ------
        ValueError, TypeError
            A parameter is out of range, or a query has no tokens, another dim, or NaNs.
        UnknownDocumentError
            An id in `subset` is not in the index.
        CheckpointError
            The query is a text and the index's model cannot be loaded.
        IndexFormatError
            A file turns out to be damaged.
        """
        params = SearchParams.resolve(
            k,
            nprobe=nprobe,
            ndocs=ndocs,
            centroid_score_threshold=centroid_score_threshold,
            mode=mode,
            exhaustive=exhaustive,
            recall=recall,
            tuning=None if recall is None else self.tuning,
        )
        searcher = self._searcher
        queries, single = read_queries(query)
        mask = None if subset is None else read_subset(subset, self._store, len(self))
        if not queries:
            return []
        texts = queries if isinstance(queries[0], str) else None
        vectors = self._vectors(queries)
        try:
            pids, scores = retrieve(
                searcher, vectors, params, mask, len(self), self._manifest.num_centroids
            )
        except RuntimeError as error:
            if "lists`" not in str(error):
                raise
            raise IndexFormatError(
                f"{self._segment_path}: {error}; verify() says which file is damaged"
            ) from error
        hits = make_hits(self._store, pids, scores, texts, self._model)
        return hits[0] if single else hits

    def _vectors(self, queries: list[Any]) -> list[npt.NDArray[np.float32]]:
        if queries and isinstance(queries[0], str):
            queries = self.model.encode_queries(queries)
        return check_vectors(queries, self._manifest.dim)

    def tune(
        self,
        recall: float = 0.99,
        *,
        k: int | Iterable[int] = (10, 100),
        queries: Any = None,
        num_queries: int = 256,
        seed: int = 42,
        progress: bool = True,
    ) -> Tuning:
        """Measure what recall costs on this index and machine, for `search` with ``recall=``.

        Recall is measured against exhaustive search. The curve is stored as tuning.json in the
        index folder and goes with the index: one that is built anew has to be tuned again.

        Parameters
        ----------
        recall
            The highest recall that searches will ask for; more of it takes longer to tune.
        k
            The numbers of hits to tune for. Searches for others take the next larger one.
        queries
            Typical queries, as for `search`. By default `num_queries` are made of the documents,
            somewhat harder than real ones.
        num_queries, seed
            Of the queries made. What the curve promises is what this many can prove (95 %), so
            fewer promise less.
        progress
            Show a progress bar on stderr.

        Raises
        ------
        ValueError, TypeError
            An argument is out of range, or a query is as `search` refuses it.
        OSError
            The index folder cannot be written to.
        """
        from colbert_fast.search.tune import TuneOptions, tune

        given = None if queries is None else self._vectors(read_queries(queries)[0])
        options = TuneOptions(recall, k, num_queries, seed, progress)
        tuning = tune(self._searcher, self._arrays(), self._codec, given, options)
        tuning.write(self._path, self._manifest)
        self.__dict__.pop("tuning", None)
        return tuning

    @functools.cached_property
    def tuning(self) -> Tuning | None:
        """What `tune` stored; None if it was never called. IndexFormatError if it is damaged."""
        return Tuning.read(self._path, self._manifest)

    @functools.cached_property
    def _searcher(self) -> Searcher:
        from colbert_fast.search.pipeline import Searcher

        segment = self._arrays()
        # The kernels look codes up without a check, so one out of range would be a crash.
        segment.check_codes(self._segment_path, self._manifest.num_centroids)
        return Searcher.of([segment], self._codec)

    def _arrays(self) -> Segment:
        if self._segment is None:
            raise ValueError(f"the index {str(self._path)!r} is closed")
        return self._segment

    @property
    def model(self) -> ColBERT:
        """The model that encodes queries; loaded on first use.

        Raises
        ------
        ValueError
            The index was built from embeddings and none was passed, or the model found under its
            name has another dim or other weights.
        CheckpointError
            The model named in the index cannot be loaded.
        """
        if self._model is None:
            self._model = load_model(self._manifest)
        return self._model

    @property
    def _segment_path(self) -> Path:
        return self._path / self._manifest.segments[0].name

    @property
    def path(self) -> Path:
        """The index folder."""
        return self._path

    @functools.cached_property
    def ids(self) -> tuple[DocumentId, ...]:
        """The ids of all documents, by position; read on first use."""
        return tuple(self._store.ids)

    def info(self) -> dict[str, Any]:
        """Sizes and settings; see `Manifest.summary`."""
        return {"path": str(self._path), **self._manifest.summary(self._path)}

    def verify(self) -> None:
        """Read every file and compare it with its checksum; check that all codes are in range.

        Raises
        ------
        IndexFormatError
            A file is damaged; the message names it.
        """
        segment = self._arrays()
        self._manifest.check_checksums(self._path)
        segment.check_codes(self._segment_path, self._manifest.num_centroids)
        Tuning.read(self._path, self._manifest)

    def close(self) -> None:
        """Let go of the files; any later search raises ValueError."""
        self._segment = None
        self.__dict__.pop("_searcher", None)
        self._store.close()

    def __len__(self) -> int:
        return self._manifest.num_documents

    def __repr__(self) -> str:
        manifest = self._manifest
        return (
            f"Index({str(self._path)!r}, documents={manifest.num_documents}, "
            f"tokens={manifest.num_tokens}, codec={manifest.codec!r}, nbits={manifest.nbits})"
        )

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
