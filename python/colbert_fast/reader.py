"""The half of the public index that reads: open it, search it, tune it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from colbert_fast.contents import IndexContents
from colbert_fast.kernels.cuda import check_device
from colbert_fast.search.hybrid import find
from colbert_fast.search.params import Mode, SearchOptions, SearchParams, check_positive
from colbert_fast.search.queries import (
    check_vectors,
    loaded_model,
    model_of_index,
    read_candidates,
    read_id_lists,
    read_mask,
    read_queries,
    read_texts,
)
from colbert_fast.search.results import Hit, make_hits
from colbert_fast.search.snapshot import Snapshot
from colbert_fast.search.tuning import Tuning
from colbert_fast.storage.documents import DocumentId
from colbert_fast.storage.filters import Filter
from colbert_fast.storage.manifest import Manifest
from colbert_fast.storage.models import check_model
from colbert_fast.storage.residence import Residence

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from colbert_fast.model import ColBERT

__all__ = ["IndexReader"]


class IndexReader(IndexContents):
    """What `Index` can do without writing to its folder (but for the file of `tune`)."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        model: ColBERT | None = None,
        residence: Residence | None = None,
    ) -> None:
        if not isinstance(snapshot, Snapshot):
            raise TypeError("an index is opened by Index.open(path) and made by Index.build")
        if model is not None:
            check_model(snapshot.manifest, model)
        self._snapshot = snapshot
        self._model = model
        self._model_was_given = model is not None
        self._residence = residence
        self._changing = threading.Lock()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        model: ColBERT | str | Path | None = None,
        device: str = "cpu",
        memory_budget: int | None = None,
    ) -> Self:
        """Open the newest generation of an index by mapping its files.

        Only centroids and document lengths are read. What can be told from sizes, headers and
        lengths is checked here. Flipped bits are not, and can give wrong scores: call `verify` once
        on an index that comes from elsewhere or from a disk you doubt.

        Parameters
        ----------
        path
            The index folder.
        model
            Encodes text queries; what `ColBERT.from_pretrained` takes is loaded. By default the
            model that the index was built with is loaded, with the same settings, when the first
            text query comes.
        device
            Where to search: "cpu", or a CUDA device such as "cuda" or "cuda:1", which gets a copy
            of the whole index here (torch is needed). There every document that probing finds is
            scored in int8 or left out by fixed numbers, so a search may find others than the CPU's;
            scores, and whatever ``exhaustive=True`` finds, are the same. No mode "plaid". What does
            not fit into the device's memory of the residuals or embeddings stays in the host's, all
            of it; then ``exhaustive=True`` and `tune` read all of that over the bus for each query.
        memory_budget
            Bytes of mapped files above which the index's are let go of after a search (Linux, on
            the CPU); they stay in the system's cache while it has room.

        Raises
        ------
        IndexFormatError
            There is no index, or a file is missing, truncated, foreign or of a newer version; the
            message names the file.
        BackendUnavailable
            This build or machine cannot search on `device`, or not with a `memory_budget`.
        MemoryError
            The index does not fit into the device's memory, even without its residuals; the message
            says what it takes.
        ValueError
            `device` names none, `memory_budget` is not positive, the model's dim is not the
            index's, or its weights are not those that the index was built with.
        """
        residence = None
        if memory_budget is not None:
            residence = Residence(check_positive("memory_budget", memory_budget))
        if device != "cpu":
            device = str(check_device(device))  # by number: threads may differ in theirs
        snapshot = Snapshot.open(Path(path).absolute(), device)
        if device != "cpu" and snapshot.num_documents:
            _ = snapshot.searcher  # what does not fit is said now
        return cls(snapshot, model=loaded_model(model), residence=residence)

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
        filter: Filter | None = None,  # noqa: A002
        candidates: Iterable[Any] | None = None,
        mode: Mode = "default",
        exhaustive: bool = False,
        recall: float | None = None,
        bm25_weight: float | None = None,
        texts: str | Sequence[str] | None = None,
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
            See `SearchParams`; the defaults depend on `mode`, `k` and the size of the collection.
        subset
            Search only these: ids, or a boolean mask (n_docs,) by place in `ids`.
        filter
            Search only documents whose metadata meets this SQL expression over the metadata's keys,
            such as ``"year >= 2020 and lang = 'de'"``, or ``("year >= ? and lang = ?", [2020,
            "de"])`` with the values apart, as is safe for values from elsewhere (``:name`` and a
            dict do as well). A key that a document lacks is NULL; lists and objects are JSON text
            (``tags LIKE '%"x"%'``, ``author ->> 'name' = 'x'``). Comparisons and functions of
            single values may be used; see `storage.filters`.
        candidates
            Score exactly these documents, which a first stage found: ids, or a list of ids for each
            of several queries. Nothing else is found, and mode, nprobe and ndocs do not matter.
        recall
            Instead of nprobe and ndocs: the share of the true `k` best to find, at the least cost
            that `tune` measured for it. Of a `subset` it may find less.
        bm25_weight
            In mode "hybrid": the share of BM25 in the fused score, by default 0.3.
        texts
            In modes "rerank" and "hybrid", which rank texts by BM25: what the queries say, if they
            are given as embeddings.

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
        snapshot = self._snapshot
        snapshot.check_open()
        params = SearchParams.resolve(
            k,
            nprobe=nprobe,
            ndocs=ndocs,
            centroid_score_threshold=centroid_score_threshold,
            mode=mode,
            exhaustive=exhaustive,
            bm25_weight=bm25_weight,
            recall=recall,
            tuning=None if recall is None else snapshot.read_tuning(),
            num_documents=snapshot.num_documents,
        )
        queries, single = read_queries(query)
        mask = read_mask(subset, filter, snapshot)
        given = read_candidates(candidates, queries, single, params, snapshot)
        said = read_texts(texts, queries, single, params.mode)
        if not queries:
            return []
        vectors = self._vectors(queries)
        pids, scores = find(snapshot, vectors, params, texts=said, candidates=given, subset=mask)
        hits = make_hits(snapshot.library, pids, scores, said, self._model)
        if self._residence is not None:
            self._residence.trim(snapshot.mapped())
        return hits[0] if single else hits

    def _vectors(self, queries: list[Any]) -> list[npt.NDArray[np.float32]]:
        if queries and isinstance(queries[0], str):
            queries = self.model.encode_queries(queries)
        return check_vectors(queries, self._snapshot.manifest.dim)

    def rerank(self, query: Any, ids: Iterable[Any]) -> list[Any]:
        """Score the documents of `ids` exactly, best first: `search` with ``candidates=ids``.

        Several queries take a list of ids each. Documents without vectors are left out.
        """
        single = read_queries(query)[1]
        lists = read_id_lists("ids", ids, single)
        most = max(map(len, lists), default=1)
        return self.search(query, max(most, 1), candidates=lists[0] if single else lists)

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
            fewer promise less: 32 hardly ever show .99, and searches for it are exhaustive then.
        progress
            Show a progress bar on stderr.

        Raises
        ------
        ValueError, TypeError
            An argument is out of range, a query as `search` refuses it, or the index encoded anew.
        OSError
            The index folder cannot be written to.
        """
        from colbert_fast.search.tune import TuneOptions, tune

        given = None if queries is None else self._vectors(read_queries(queries)[0])
        options = TuneOptions(recall, k, num_queries, seed, progress)
        snapshot = self._snapshot
        snapshot.check_open()
        tuning = tune(snapshot, given, options)
        tuning.write(snapshot.path, snapshot.manifest)
        snapshot.tuning = tuning
        return tuning

    @property
    def tuning(self) -> Tuning | None:
        """What `tune` stored; None if it was never called. IndexFormatError if it is damaged."""
        return Tuning.read(self._snapshot.path, self._snapshot.manifest)

    def refresh(self) -> bool:
        """Go over to the newest generation; returns whether there was a newer one.

        Searches that are running end on the one that they began with. The next search copies the
        new one to the `device`, in the place of the old one.

        Raises
        ------
        ValueError
            The index was built anew with another model than the one that was passed to `open`.
        """
        with self._changing:
            old = self._snapshot
            old.check_open()
            if Manifest.read(old.path) == old.manifest:
                return False
            fresh = Snapshot.open(old.path, old.device, before=old)
            if self._model is not None and fresh.manifest.lineage != old.manifest.lineage:
                if self._model_was_given:
                    check_model(fresh.manifest, self._model)
                else:
                    self._model = None
            self._snapshot = fresh
            return True

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
        model = self._model
        if model is None:
            with self._changing:  # threads that ask first wait for one of them
                model = self._model = self._model or model_of_index(self._snapshot.manifest)
        return model

    def close(self) -> None:
        """Let go of the files; any later search raises ValueError."""
        with self._changing:
            self._snapshot.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
