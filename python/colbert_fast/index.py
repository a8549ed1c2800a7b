"""The public index: build it, open it, search it, change it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colbert_fast.reader import IndexReader
from colbert_fast.search.queries import loaded_model
from colbert_fast.storage.documents import DocumentId
from colbert_fast.storage.filters import Filter
from colbert_fast.storage.manifest import CodecName

if TYPE_CHECKING:
    from colbert_fast.compress.device import BuildDevice
    from colbert_fast.indexing.repair import RepairReport
    from colbert_fast.model import ColBERT

__all__ = ["Index"]


class Index(IndexReader):
    """A searchable collection on disk; see `Index.build` and `Index.open`.

    It shows the generation that was there when it was opened, or that this object has committed
    since, and can be shared between threads. What others commit is seen after `refresh`. Use it as
    a context manager, or call `close`, to let go of its files. Keep it on a local disk: locks and
    removed files that are still open are not the same thing on every network file system.
    """

    @classmethod
    def build(
        cls,
        path: str | os.PathLike[str],
        documents: Iterable[Any],
        *,
        model: ColBERT | str | Path | None = None,
        ids: Iterable[DocumentId] | None = None,
        nbits: int = 2,
        codec: CodecName = "default",
        num_centroids: int | None = None,
        kmeans_iterations: int = 4,
        seed: int = 42,
        pool_factor: int = 1,
        overwrite: bool = False,
        resume: bool = False,
        codec_from: str | os.PathLike[str] | None = None,
        memory_budget: int | None = None,
        device: BuildDevice = "cpu",
        progress: bool = True,
    ) -> Index:
        """Build an index in one pass over the documents, and open it.

        The index appears at `path` complete or not at all. Memory stays under 1.5 GB at 128
        dimensions; what grows with the collection are some 12 bytes per document and, with the
        square root of its tokens, the centroids.

        Centroids are fitted on a sample of the first 16 million tokens. If more come and they are
        sorted, as by topic or date, shuffle the documents first.

        Parameters
        ----------
        path
            Folder to create; its parent must exist.
        documents
            Any iterable, read once. Each item is a text; ``(id, text)``; a dict with "text" and
            any of "id" and further keys, kept as metadata; a dict with "_id", read as a record of
            BEIR: its "title" is put before its "text"; or token embeddings: a (tokens, dim) array
            or tensor of floats, alone, as ``(id, embeddings)`` or as "embeddings" in a dict.
            Embeddings are stored as unit vectors: rows of another length are normalised.
        model
            Encodes texts; what `ColBERT.from_pretrained` takes, as "default", is loaded. Not needed
            for embeddings; then it is only noted for later searches.
        ids
            One id (str or int) per document, where they carry none; numbers from 0 by default.
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
            Replace an index at `path`; it stays as it is until the new one is complete.
        resume
            Keep the vectors of texts on disk, in ``<path>.building``, until the build has ended
            (2 bytes per dimension and token). A build that was stopped or killed is called again
            with the same documents, and encodes only those that it had not come to.
        codec_from
            Take centroids and codec of this index instead of fitting them: `nbits`, `codec`,
            `num_centroids`, `kmeans_iterations` and `seed` do not matter then. Indexes with the
            same centroids can be merged.
        memory_budget
            Bytes that the build may take besides the model, the documents given and SQLite: it
            limits the sample for the centroids, by default 1 GB at 128 dimensions.
        device
            Of k-means and compression: "cpu" or "cuda" (torch's current device), for files of the
            same format. Texts are encoded where the model is.
        progress
            Show progress bars on stderr.

        Raises
        ------
        ValueError, TypeError
            An argument, a document, an id or a vector is not acceptable; documents are named by id.
        BackendUnavailable, MemoryError
            This build or machine has no CUDA; `device` has no room for the sample, the
            centroids or a chunk.
        IndexBusyError
            Another build for `path` is running.
        IndexExistsError
            Something is at `path` already and `overwrite` is false, or it is not an index.
        OSError
            Writing failed, as on a full disk or without a parent folder; nothing is left behind.
        """
        from colbert_fast.indexing.build import build_index  # not for searching
        from colbert_fast.indexing.options import BuildOptions

        options = BuildOptions(
            nbits=nbits,
            codec=codec,
            num_centroids=num_centroids,
            kmeans_iterations=kmeans_iterations,
            seed=seed,
            pool_factor=pool_factor,
            overwrite=overwrite,
            resume=resume,
            codec_from=None if codec_from is None else Path(codec_from).absolute(),
            memory_budget=memory_budget,
            device=device,
            progress=progress,
        )
        model = loaded_model(model)
        build_index(folder := Path(path).absolute(), documents, options, model=model, ids=ids)
        return cls.open(folder, model=model)  # the documents may have changed the working folder

    @classmethod
    def import_from(
        cls,
        source: str | os.PathLike[str],
        path: str | os.PathLike[str],
        *,
        documents: Iterable[Any] | None = None,
        ids: Iterable[DocumentId] | None = None,
        model: ColBERT | str | Path | None = None,
        overwrite: bool = False,
        progress: bool = True,
    ) -> Index:
        """Take over the index of another library, and open it.

        `source` is a folder of Stanford ColBERT or RAGatouille, fast-plaid, next-plaid, xtr-warp or
        xtr-warp-rs; its files tell which. Centroids, codes, residuals and levels stay as they are
        (``codec="plaid"``), and so do the scores, but for WARP's: WARP adds up vectors that are not
        scaled to unit length. Nothing in the folder is executed: no pickle is trusted.

        Parameters
        ----------
        source
            Folder of the other library's index.
        path
            Folder to create; its parent must exist.
        documents
            Texts, ids and metadata, as for `build`: one for each document, in the order in which
            they were indexed. Those of deleted documents are read too, and left out.
        ids
            The same for ids alone. Without either, ids are the numbers that the documents have in
            `source`, or the names that RAGatouille and `export` store.
        model
            Encodes text queries, as for `open`. By default the checkpoint that `source` names.
        overwrite, progress
            As for `build`.

        Raises
        ------
        IndexFormatError
            `source` is none of these, or a file is damaged or disagrees with another; named.
        ValueError, TypeError
            There are more or fewer `documents` or `ids` than in `source`, or one is unacceptable.
        IndexExistsError, FileNotFoundError, OSError
            As for `build`; nothing is left behind.
        """
        from colbert_fast.indexing.convert import import_index

        model = loaded_model(model)
        import_index(
            Path(source).absolute(),
            folder := Path(path).absolute(),
            documents=documents,
            ids=ids,
            model=model,
            overwrite=overwrite,
            progress=progress,
        )
        return cls.open(folder, model=model)

    def add(
        self,
        documents: Iterable[Any],
        *,
        ids: Iterable[DocumentId] | None = None,
        pool_factor: int = 1,
        timeout: float = 0.0,
        progress: bool = True,
    ) -> int:
        """Add documents, in one transaction: all of them, or none if anything fails.

        They are found at once by searches of this object, and by whoever opens or refreshes the
        index from now on. Where they lie much farther from the centroids than the documents that
        the index was built of, centroids are added for them.

        Parameters
        ----------
        documents, ids
            As for `build`. Documents without an id are numbered on from the largest number that
            was ever an id here.
        pool_factor
            As for `build`.
        timeout
            Seconds to wait for another writer.
        progress
            Show progress bars on stderr.

        Returns
        -------
        int
            How many were added.

        Raises
        ------
        ValueError, TypeError
            A document, an id or a vector is not acceptable, or an id is in the index already.
        IndexBusyError
            Another process or thread is writing to the index.
        OSError
            Writing failed, as on a full disk. The index is as it was, unless it was the last step
            that failed, making sure that the new manifest is on disk; `refresh` tells.
        """
        return self._add(
            documents, ids, pool_factor, upsert=False, timeout=timeout, progress=progress
        )

    def upsert(
        self,
        documents: Iterable[Any],
        *,
        ids: Iterable[DocumentId] | None = None,
        pool_factor: int = 1,
        timeout: float = 0.0,
        progress: bool = True,
    ) -> int:
        """As `add`, but a document whose id is in the index replaces the one there."""
        return self._add(
            documents, ids, pool_factor, upsert=True, timeout=timeout, progress=progress
        )

    def _add(
        self,
        documents: Iterable[Any],
        ids: Iterable[DocumentId] | None,
        pool_factor: int,
        *,
        upsert: bool,
        timeout: float,
        progress: bool,
    ) -> int:
        from colbert_fast.indexing.update import AddOptions, add_documents  # not for searching

        self._snapshot.check_open()
        options = AddOptions(
            upsert=upsert, pool_factor=pool_factor, timeout=timeout, progress=progress
        )
        count = add_documents(self.path, documents, options, model=lambda: self.model, ids=ids)
        self.refresh()
        return count

    def delete(
        self,
        ids: Iterable[DocumentId] | None = None,
        *,
        filter: Filter | None = None,  # noqa: A002
        timeout: float = 0.0,
    ) -> int:
        """Delete documents in one transaction; returns how many.

        They are those of `ids`, or those that a `filter` finds, as in `search`.

        They are not found any more; their room is given back when their segment is merged, and by
        `compact`. Their ids may be used again.

        Raises
        ------
        UnknownDocumentError
            An id is not in the index; nothing is deleted.
        ValueError, TypeError
            Neither `ids` nor `filter` is given, or both, or the filter is none.
        IndexBusyError, OSError
            As for `add`.
        """
        from colbert_fast.indexing.update import delete_documents

        self._snapshot.check_open()
        count = delete_documents(self.path, ids, filter, timeout=timeout)
        self.refresh()
        return count

    def compact(
        self,
        *,
        retrain: bool = False,
        seed: int = 42,
        timeout: float = 0.0,
        progress: bool = True,
    ) -> None:
        """Merge all segments into one and give back the room of deleted documents.

        Parameters
        ----------
        retrain
            Fit centroids and codec anew to the documents that are there now, and encode the stored
            vectors again. Each time costs a little precision, as they are stored compressed.
        seed
            Of sampling and k-means.
        timeout, progress
            As for `add`, errors too.
        """
        from colbert_fast.indexing.update import compact

        self._snapshot.check_open()
        compact(self.path, retrain=retrain, seed=seed, timeout=timeout, progress=progress)
        self.refresh()

    @classmethod
    def merge(
        cls,
        path: str | os.PathLike[str],
        indexes: Iterable[str | os.PathLike[str]],
        *,
        model: ColBERT | str | Path | None = None,
        overwrite: bool = False,
    ) -> Index:
        """Put indexes with the same centroids together, without encoding anything, and open it.

        The arrays are, to the byte, those of one build of all documents with the same centroids.

        Parameters
        ----------
        path
            Folder to create.
        indexes
            Folders of indexes, one built with ``codec_from=`` another.
        model
            As for `open`.
        overwrite
            As for `build`.

        Raises
        ------
        ValueError
            Their centroids, codecs or models differ, or they have an id in common.
        IndexFormatError, IndexExistsError, OSError
            As for `open` and `build`.
        """
        from colbert_fast.indexing.merge import merge_indexes

        parts = [Path(each).absolute() for each in indexes]
        model = loaded_model(model)
        merge_indexes(folder := Path(path).absolute(), parts, overwrite=overwrite)
        return cls.open(folder, model=model)

    @staticmethod
    def repair(path: str | os.PathLike[str], *, timeout: float = 0.0) -> RepairReport:
        """Save what is sound of a damaged index, as its next generation.

        Inverted lists and inverse norms are made anew. A segment of which codes, residuals,
        lengths or documents are damaged is left out whole; its folder stays, as ``lost-...``. Where
        the marks of deleted documents are damaged, those are found again whose id is nowhere else;
        the report says how many.

        Parameters
        ----------
        path
            The index folder. It need not open.
        timeout
            Seconds to wait for another writer.

        Raises
        ------
        IndexFormatError
            The manifest or the codec's own files are damaged: then nothing can be read.
        IndexBusyError, OSError
            As for `add`.
        """
        from colbert_fast.indexing.repair import repair_index

        return repair_index(Path(path).absolute(), timeout=timeout)
