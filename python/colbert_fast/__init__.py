"""From text to ColBERTv2 late-interaction search.

Importing this package loads neither torch nor transformers: names arrive when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from colbert_fast._version import __version__

if TYPE_CHECKING:
    from colbert_fast.corpus import load_embeddings, read_corpus
    from colbert_fast.errors import (
        BackendUnavailable,
        CheckpointError,
        ColbertFastError,
        IndexBusyError,
        IndexExistsError,
        IndexFormatError,
        MissingDependencyError,
        UnknownDocumentError,
    )
    from colbert_fast.evaluation import evaluate, load_beir
    from colbert_fast.index import Index
    from colbert_fast.kernels.backend import backend_info, get_num_threads, set_num_threads
    from colbert_fast.kernels.ops import maxsim
    from colbert_fast.model.colbert import ColBERT
    from colbert_fast.ranking import rerank
    from colbert_fast.search.results import Hit
    from colbert_fast.sharded import ShardedIndex
    from colbert_fast.training.config import TrainingConfig
    from colbert_fast.training.data import Texts, TrainingData, TupleFile, training_positives
    from colbert_fast.training.mining import mine
    from colbert_fast.training.sampling import sample_tuples
    from colbert_fast.training.teacher import score_with_teacher
    from colbert_fast.training.train_teacher import train_teacher
    from colbert_fast.training.trainer import train

_HOME = {
    "BackendUnavailable": "errors",
    "CheckpointError": "errors",
    "ColBERT": "model.colbert",
    "ColbertFastError": "errors",
    "Hit": "search.results",
    "Index": "index",
    "IndexBusyError": "errors",
    "IndexExistsError": "errors",
    "IndexFormatError": "errors",
    "MissingDependencyError": "errors",
    "ShardedIndex": "sharded",
    "Texts": "training.texts",
    "TrainingConfig": "training.config",
    "TrainingData": "training.data",
    "TupleFile": "training.tuple_files",
    "UnknownDocumentError": "errors",
    "backend_info": "kernels.backend",
    "evaluate": "evaluation",
    "get_num_threads": "kernels.backend",
    "load_beir": "evaluation",
    "load_embeddings": "corpus",
    "maxsim": "kernels.ops",
    "mine": "training.mining",
    "read_corpus": "corpus",
    "rerank": "ranking",
    "sample_tuples": "training.sampling",
    "score_with_teacher": "training.teacher",
    "set_num_threads": "kernels.backend",
    "train": "training.trainer",
    "train_teacher": "training.train_teacher",
    "training_positives": "training.data",
}

__all__ = [
    "BackendUnavailable",
    "CheckpointError",
    "ColBERT",
    "ColbertFastError",
    "Hit",
    "Index",
    "IndexBusyError",
    "IndexExistsError",
    "IndexFormatError",
    "MissingDependencyError",
    "ShardedIndex",
    "Texts",
    "TrainingConfig",
    "TrainingData",
    "TupleFile",
    "UnknownDocumentError",
    "__version__",
    "backend_info",
    "evaluate",
    "get_num_threads",
    "load_beir",
    "load_embeddings",
    "maxsim",
    "mine",
    "read_corpus",
    "rerank",
    "sample_tuples",
    "score_with_teacher",
    "set_num_threads",
    "train",
    "train_teacher",
    "training_positives",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'colbert_fast' has no attribute {name!r}")
    value = getattr(import_module(f"colbert_fast.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
