"""Several indexes on this machine, searched as one."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colbert_fast.reader import IndexReader
from colbert_fast.search.params import TEXT_MODES, check_positive
from colbert_fast.search.queries import check_vectors, loaded_model, read_queries, read_texts
from colbert_fast.search.results import Hit, asked
from colbert_fast.storage.documents import DocumentId
from colbert_fast.storage.filters import Condition, read_filter

if TYPE_CHECKING:
    from colbert_fast.model import ColBERT

__all__ = ["ShardedIndex"]


class ShardedIndex:
    """Search indexes that were built apart, with any centroids, as if they were one.

    Scores are those of each document's own stored vectors, so they compare. Whoever wants one file
    instead builds with the same centroids and merges (`Index.merge`). Documents of several shards
    may have the same id; then each is found.

    Parameters
    ----------
    paths
        Folders of indexes.
    model
        Encodes text queries, as for `Index.open`; by default the one that the first index was
        built with.
    device
        Where to search, as for `Index.open`: one for all shards, or one for each, so that several
        GPUs hold a collection and search at the same time. Shards take the room on a device in
        their order.
    memory_budget
        As for `Index.open`; each shard has an equal part of it.

    Raises
    ------
    IndexFormatError, BackendUnavailable, MemoryError
        As for `Index.open`.
    ValueError
        There is no index, they differ in dim or in the model's weights, there are more or fewer
        devices than indexes, or `memory_budget` is less than a byte for each.
    """

    def __init__(
        self,
        paths: Iterable[str | os.PathLike[str]],
        *,
        model: ColBERT | str | Path | None = None,
        device: str | Sequence[str] = "cpu",
        memory_budget: int | None = None,
    ) -> None:
        folders = list(paths)
        if not folders:
            raise ValueError("paths: there is no index")
        devices = [device] * len(folders) if isinstance(device, str) else list(device)
        if len(devices) != len(folders):
            raise ValueError(f"device: got {len(devices)} for {len(folders)} indexes")
        if memory_budget is not None:
            if check_positive("memory_budget", memory_budget) < len(folders):
                raise ValueError(
                    f"memory_budget must be at least a byte for each of {len(folders)} indexes, "
                    f"got {memory_budget}"
                )
            memory_budget //= len(folders)
        model = loaded_model(model)
        self.shards = [
            IndexReader.open(folder, model=model, device=each, memory_budget=memory_budget)
            for folder, each in zip(folders, devices, strict=True)
        ]
        # A thread waits for its GPU; on the CPU a search has all threads already.
        self._pool = ThreadPoolExecutor(len(folders)) if {*devices} != {"cpu"} else None
        self._check()

    def _check(self) -> None:
        manifests = [shard.manifest for shard in self.shards]
        for shard, manifest in zip(self.shards, manifests, strict=True):
            if manifest.dim != manifests[0].dim:
                raise ValueError(
                    f"paths: {str(shard.path)!r} has dim {manifest.dim}, "
                    f"{str(self.shards[0].path)!r} has {manifests[0].dim}"
                )
        if len({each.model_fingerprint for each in manifests} - {None}) > 1:
            raise ValueError("paths: the indexes were built with models of other weights")

    def search(self, query: Any, k: int = 10, **options: Any) -> list[Any]:
        """Find the `k` best documents of all shards, best first; see `Index.search`.

        `subset` and `candidates`, which speak of one index's documents, are not taken, nor is mode
        "hybrid", whose scores depend on what else an index finds. A `filter` may speak of the keys
        of all shards.
        """
        for name in ("subset", "candidates"):
            if options.get(name) is not None:
                raise ValueError(f"{name}: search the shard that has these documents")
        if options.get("mode") == "hybrid":
            raise ValueError('mode "hybrid": scores of several indexes cannot be compared')
        k = check_positive("k", k)
        queries, single = read_queries(query)
        if not queries:
            return []
        texts = queries if isinstance(queries[0], str) else None
        model = None if texts is None else self.shards[0].model
        vectors = check_vectors(
            queries if model is None else model.encode_queries(queries), self.shards[0].manifest.dim
        )
        said = read_texts(options.get("texts"), queries, single, options.get("mode", "default"))
        if options.get("mode") in TEXT_MODES:
            options["texts"] = said
        if options.get("filter") is not None:
            options["filter"] = self._condition(options["filter"])
        each_shard: Any = map if self._pool is None else self._pool.map
        answers = [*each_shard(lambda shard: shard.search(vectors, k, **options), self.shards)]
        merged = [
            heapq.nsmallest(k, (hit for hits in row for hit in hits), key=_by_score)
            for row in zip(*answers, strict=True)
        ]
        if texts is not None and model is not None:
            for text, hits in zip(texts, merged, strict=True):
                asked(hits, text, model)
        return merged[0] if single else merged

    def _condition(self, filter: Any) -> Condition:  # noqa: A002
        """A filter to which no shard's keys are unknown."""
        keys = (
            key
            for shard in self.shards
            for store in shard._snapshot.library.stores
            for key in store.fields.places
        )
        return read_filter(filter)._replace(elsewhere=tuple(dict.fromkeys(keys)))

    @property
    def ids(self) -> tuple[DocumentId, ...]:
        """The ids of all shards' documents, in their order."""
        return tuple(chain.from_iterable(shard.ids for shard in self.shards))

    def info(self) -> dict[str, Any]:
        """Sizes in all, and `Index.info` of each shard."""
        shards = [shard.info() for shard in self.shards]
        totals = {
            name: sum(each[name] for each in shards) for name in ("documents", "tokens", "bytes")
        }
        return {**totals, "shards": shards}

    def refresh(self) -> bool:
        """`Index.refresh` of all shards; returns whether one of them had a newer generation.

        Raises
        ------
        ValueError
            A shard was built anew with another dim or model than the others.
        """
        newer = [shard.refresh() for shard in self.shards]
        self._check()
        return any(newer)

    def close(self) -> None:
        """Let go of the files of all shards."""
        for shard in self.shards:
            shard.close()

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def __repr__(self) -> str:
        paths = [str(shard.path) for shard in self.shards]
        return f"ShardedIndex({paths}, documents={len(self)})"

    def __enter__(self) -> ShardedIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _by_score(hit: Hit) -> float:
    return -hit.score
