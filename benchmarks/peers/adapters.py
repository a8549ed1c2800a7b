"""The libraries behind one interface: build an index from token vectors, open it, search it.

Each adapter is what a user of the library would write, fed the vectors in the cheapest form that
the library takes. Libraries are imported where they are used: every one lives in an environment of
its own, and the driver, which needs the names and the operating points, has none of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

K = 100  # documents wanted from every search
DIM = 128

Point = Mapping[str, Any]  # keyword arguments of a search


class Library:
    """One library. `packages` are those whose versions matter; the first is its own."""

    environment: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    points: ClassVar[dict[str, Point]]  # the first is the library's default for K documents

    def __init__(self, path: Path, nbits: int, threads: int) -> None:
        self.path, self.nbits, self.threads = path, nbits, threads

    def imports(self) -> None:
        """Import the library and tell it how many threads to use; not a part of any figure."""
        raise NotImplementedError

    def build(self, embeddings: np.ndarray, doclens: np.ndarray) -> None:
        """Write an index of float16 (n_tokens, DIM) vectors, documents back to back."""
        raise NotImplementedError

    def open(self) -> None:
        """Make the index at `path` ready for searches."""
        raise NotImplementedError

    def search(self, query: np.ndarray, **point: Any) -> list[int]:
        """Return the K best documents, best first, for a float32 (tokens, DIM) query."""
        raise NotImplementedError

    def search_batch(self, queries: np.ndarray, **point: Any) -> list[list[int]]:
        """Return the same for (n, tokens, DIM) queries; a loop where the library has no batches."""
        return [self.search(query, **point) for query in queries]


def split_documents(embeddings: Any, doclens: np.ndarray) -> list[Any]:
    """Views of the documents, of an array or a tensor."""
    ends = np.cumsum(doclens).tolist()
    return [embeddings[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


class ColbertFast(Library):
    environment = "colbert-fast"
    packages = ("colbert-fast", "numpy")
    points: ClassVar = {
        "default": {},
        **{
            f"nprobe={nprobe}, ndocs={ndocs}": {"nprobe": nprobe, "ndocs": ndocs}
            for nprobe, ndocs in (
                (1, 128), (1, 256), (2, 256), (2, 512), (4, 512),
                (4, 1024), (4, 2048), (8, 4096), (16, 8192),
            )
        },
        "mode=plaid": {"mode": "plaid"},
        "exhaustive": {"exhaustive": True},
    }  # fmt: skip

    def imports(self) -> None:
        import colbert_fast

        colbert_fast.set_num_threads(self.threads)

    def build(self, embeddings: np.ndarray, doclens: np.ndarray) -> None:
        from colbert_fast import Index

        documents = split_documents(embeddings, doclens)
        Index.build(self.path, documents, nbits=self.nbits, progress=False)

    def open(self) -> None:
        from colbert_fast import Index

        self.index = Index.open(self.path)

    def search(self, query: np.ndarray, **point: Any) -> list[int]:
        return [hit.id for hit in self.index.search(query, K, **point)]

    def search_batch(self, queries: np.ndarray, **point: Any) -> list[list[int]]:
        return [[hit.id for hit in hits] for hits in self.index.search(queries, K, **point)]


class TorchLibrary(Library):
    """Whatever computes with torch."""

    def imports(self) -> None:
        import torch

        torch.set_num_threads(self.threads)


class FastPlaid(TorchLibrary):
    """Its default scores all documents in one chunk; on a CPU, chunks of 64 take a third less."""

    environment = "fast-plaid"
    packages = ("fast-plaid", "torch", "fastkmeans")
    points: ClassVar = {
        "default": {},
        **{
            f"n_ivf_probe={nprobe}, n_full_scores={full}, batch_size=64": {
                "n_ivf_probe": nprobe,
                "n_full_scores": full,
                "batch_size": 64,
            }
            for nprobe, full in ((1, 512), (2, 1024), (4, 2048), (16, 8192))
        },
    }

    def imports(self) -> None:
        super().imports()
        import fast_plaid.search  # noqa: F401

    def make(self) -> Any:
        from fast_plaid.search import FastPlaid

        return FastPlaid(index=str(self.path), device="cpu")

    def build(self, embeddings: np.ndarray, doclens: np.ndarray) -> None:
        import torch

        documents = split_documents(torch.from_numpy(embeddings), doclens)
        self.make().create(documents_embeddings=documents, nbits=self.nbits)

    def open(self) -> None:
        self.index = self.make()

    def search(self, query: np.ndarray, **point: Any) -> list[int]:
        return self.search_batch(query[None], **point)[0]

    def search_batch(self, queries: np.ndarray, **point: Any) -> list[list[int]]:
        import torch

        found = self.index.search(
            torch.from_numpy(queries),
            top_k=K,
            show_progress=False,
            n_processes=min(self.threads, len(queries)),
            **point,
        )
        return [[pid for pid, _ in hits] for hits in found]


class XtrWarp(TorchLibrary):
    """Its scores impute what it did not look at, as models trained for XTR expect.

    For vectors of other models it finds far more without the threshold of its defaults.
    """

    environment = "fast-plaid"
    packages = ("xtr-warp-rs", "torch")
    points: ClassVar = {
        "default": {},
        **{
            f"nprobe={nprobe}, no threshold": {
                "nprobe": nprobe,
                "bound": 4 * nprobe,
                "centroid_score_threshold": 0.0,
            }
            for nprobe in (8, 32, 128, 256)
        },
    }

    def imports(self) -> None:
        super().imports()
        import xtr_warp  # noqa: F401

    def make(self) -> Any:
        from xtr_warp.search import XTRWarp

        return XTRWarp(index=str(self.path), device="cpu")

    def build(self, embeddings: np.ndarray, doclens: np.ndarray) -> None:
        import torch

        documents = split_documents(torch.from_numpy(embeddings), doclens)
        self.make().create(documents, device="cpu", nbits=self.nbits, show_progress=False)

    def open(self) -> None:
        self.index = self.make()
        self.index.load(device="cpu")

    def search(self, query: np.ndarray, **point: Any) -> list[int]:
        return self.search_batch(query[None], **point)[0]

    def search_batch(self, queries: np.ndarray, **point: Any) -> list[list[int]]:
        import torch

        found = self.index.search(
            torch.from_numpy(queries),
            top_k=K,
            num_threads=self.threads,
            show_progress=False,
            **point,
        )
        return [[pid for pid, _ in hits] for hits in found]


class ColbertAI(TorchLibrary):
    """Stanford's code takes texts: a stand-in for its encoder hands our vectors to its indexer."""

    environment = "colbert-ai"
    packages = ("colbert-ai", "torch", "faiss-cpu", "transformers")
    points: ClassVar = {
        # the default and those named "its" are what Searcher.dense_search sets for such k
        "default": {"ncells": 2, "centroid_score_threshold": 0.45, "ndocs": 1024},
        "its k<=10": {"ncells": 1, "centroid_score_threshold": 0.5, "ndocs": 256},
        "ncells=4, ndocs=2048": {"ncells": 4, "centroid_score_threshold": 0.45, "ndocs": 2048},
        "its k>100": {"ncells": 4, "centroid_score_threshold": 0.4, "ndocs": 4096},
        "ncells=8, ndocs=8192": {"ncells": 8, "centroid_score_threshold": 0.0, "ndocs": 8192},
    }

    def imports(self) -> None:
        super().imports()
        import colbert.indexing.collection_indexer
        import colbert.search.index_storage  # noqa: F401

    def config(self) -> Any:
        from colbert.infra.config import ColBERTConfig

        return ColBERTConfig(
            nbits=self.nbits,
            dim=DIM,
            index_path=str(self.path),
            index_name=self.path.name,
            checkpoint="none",
            gpus=0,
            avoid_fork_if_possible=True,
        )

    def build(self, embeddings: np.ndarray, doclens: np.ndarray) -> None:
        import torch
        from colbert.indexing import collection_indexer as stanford

        documents = split_documents(embeddings, doclens)

        class Vectors:
            """In the place of CollectionEncoder: passages are numbers of documents."""

            def __init__(self, *_: Any) -> None:
                pass

            def encode_passages(self, passages: list[str]) -> tuple[Any, list[int]]:
                chosen = [documents[int(passage)] for passage in passages]
                vectors = torch.from_numpy(np.concatenate(chosen)).float()
                return vectors, [len(document) for document in chosen]

        stanford.CollectionEncoder = Vectors
        stanford.Checkpoint = lambda *_, **__: None
        self.path.mkdir(parents=True)
        random.seed(12345)  # as Stanford's launcher does
        torch.manual_seed(12345)
        passages = [str(number) for number in range(len(documents))]
        stanford.CollectionIndexer(self.config(), passages, verbose=1).run([[None]])

    def open(self) -> None:
        from colbert.modeling.colbert import ColBERT
        from colbert.search.index_storage import IndexScorer

        ColBERT.try_load_torch_extensions(use_gpu=False)  # a checkpoint would do it
        self.settings = self.config()
        self.scorer = IndexScorer(str(self.path), use_gpu=False)

    def search(self, query: np.ndarray, **point: Any) -> list[int]:
        import torch

        self.settings.configure(**point)
        pids, _ = self.scorer.rank(self.settings, torch.from_numpy(query)[None])
        return pids[:K]


class ColbertAICheap(ColbertAI):
    """The same with k-means on 2^18 tokens for 2 iterations, for collections that would take hours.

    Stanford's own settings are all sampled tokens and 4 iterations.
    """

    def build(self, embeddings: np.ndarray, doclens: np.ndarray) -> None:
        from colbert.indexing import collection_indexer as stanford

        fit: Callable[..., Any] = stanford.compute_faiss_kmeans
        stanford.compute_faiss_kmeans = lambda dim, k, _, sample: fit(
            dim, k, 2, [[sample[0][0][: 2**18]]]
        )
        super().build(embeddings, doclens)


class PyLate(TorchLibrary):
    """PyLate's PLAID on its default engine, fast-plaid; its settings belong to the index."""

    environment = "pylate"
    packages = ("pylate", "fast-plaid", "torch")
    points: ClassVar = {
        "default": {},
        "n_ivf_probe=4, n_full_scores=2048, batch_size=64": {
            "n_ivf_probe": 4,
            "n_full_scores": 2048,
            "batch_size": 64,
        },
    }
    fast = True

    def imports(self) -> None:
        super().imports()
        import pylate.indexes  # noqa: F401

    def make(self, **options: Any) -> Any:
        from pylate.indexes import PLAID

        return PLAID(
            index_folder=str(self.path.parent),
            index_name=self.path.name,
            nbits=self.nbits,
            use_fast=self.fast,
            show_progress=False,
            num_threads=self.threads,
            device="cpu",
            **options,
        )

    def build(self, embeddings: np.ndarray, doclens: np.ndarray) -> None:
        documents = split_documents(embeddings, doclens)
        self.make(override=True).add_documents([str(i) for i in range(len(doclens))], documents)

    def open(self) -> None:
        self.index: dict[str, Any] = {
            str(point): self.make(**point) for point in self.points.values()
        }

    def search(self, query: np.ndarray, **point: Any) -> list[int]:
        return self.search_batch(query[None], **point)[0]

    def search_batch(self, queries: np.ndarray, **point: Any) -> list[list[int]]:
        found = self.index[str(point)](queries, k=K)
        return [[int(hit["id"]) for hit in hits] for hits in found]


class PyLateStanford(PyLate):
    """PyLate's PLAID on the copy of Stanford's code that it carries."""

    packages = ("pylate", "torch", "faiss-cpu")
    points: ClassVar = {
        "default": {},
        "ncells=2, ndocs=1024": {"ncells": 2, "ndocs": 1024, "centroid_score_threshold": 0.45},
    }
    fast = False


LIBRARIES: dict[str, type[Library]] = {
    "colbert-fast": ColbertFast,
    "colbert-ai": ColbertAI,
    "colbert-ai-cheap": ColbertAICheap,
    "fast-plaid": FastPlaid,
    "xtr-warp-rs": XtrWarp,
    "pylate": PyLate,
    "pylate-stanford": PyLateStanford,
}
