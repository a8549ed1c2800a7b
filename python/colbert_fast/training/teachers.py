"""Teachers that need no training of their own: BM25, late interaction, bi-encoders."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from colbert_fast.kernels import ops
from colbert_fast.model.device import check_device
from colbert_fast.model.fingerprint import settings_fingerprint
from colbert_fast.search.bm25 import length_norm, word_weight
from colbert_fast.storage.text_index import count_terms
from colbert_fast.training.cross_encoder import (
    TeacherDType,
    autocast,
    check_batch_size,
    foreign_fingerprint,
    load_with,
    resolve_teacher_dtype,
)
from colbert_fast.training.teacher_cache import Pair

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from colbert_fast.model import ColBERT

__all__ = ["BM25Teacher", "BiEncoderTeacher", "JudgementsTeacher", "MaxSimTeacher"]

_COUNTED = 512  # documents whose words are counted together


class BM25Teacher:
    """BM25, as searches rank with it (`search.bm25`), by the statistics of a collection.

    Parameters
    ----------
    documents : mapping or iterable of str
        The collection's texts, read once; only how many of them hold each word is kept.
    """

    def __init__(self, documents: Mapping[str, str] | Iterable[str]) -> None:
        texts = iter(documents.values() if isinstance(documents, Mapping) else documents)
        self._holders: Counter[str] = Counter()
        self._num_texts = num_words = 0
        while part := list(itertools.islice(texts, _COUNTED)):
            for words in count_terms(part):
                self._holders.update(words.keys())
                self._num_texts += bool(words)
                num_words += words.total()
        self._mean = num_words / max(self._num_texts, 1) or 1.0

    @functools.cached_property
    def fingerprint(self) -> str:
        """All statistics that scores depend on."""
        digest = hashlib.blake2b(f"{self._num_texts} {self._mean!r}".encode(), digest_size=8)
        for word, holders in sorted(self._holders.items()):
            digest.update(f" {word} {holders}".encode())
        return f"bm25 {digest.hexdigest()}"

    def __call__(self, pairs: Sequence[Pair]) -> npt.NDArray[np.float32]:
        """float32 (len(pairs),) scores of (query, document) texts; 0 where no word is shared."""
        queries, rows = _distinct([query for query, _ in pairs])
        documents, columns = _distinct([document for _, document in pairs])
        asked = [self._weights(words) for words in count_terms(queries)]
        held = count_terms(documents)
        norms = length_norm(np.array([words.total() for words in held]), self._mean)
        scores = np.zeros(len(pairs), np.float32)
        for place, (row, column) in enumerate(zip(rows, columns, strict=True)):
            for word, weight in asked[row].items():
                count = held[column].get(word, 0)
                scores[place] += weight * count / (count + norms[column])
        return scores

    def _weights(self, words: Counter[str]) -> dict[str, float]:
        return {
            word: times * word_weight(self._num_texts, self._holders[word])
            for word, times in words.items()
        }


class JudgementsTeacher:
    """What is known already: the grade of a query's positives, 0 for all else; a bonus in a sum.

    Parameters
    ----------
    queries, documents : mapping of str to str
        Texts by id.
    positives : mapping
        Query id to its positives, {id: grade}.
    """

    def __init__(
        self,
        queries: Mapping[str, str],
        documents: Mapping[str, str],
        positives: Mapping[str, Mapping[str, int]],
    ) -> None:
        self._grades: dict[Pair, int] = {}  # of equal texts the best
        for query, judged in positives.items():
            for document, grade in judged.items():
                pair = queries[query], documents[document]
                self._grades[pair] = max(grade, self._grades.get(pair, 0))

    @functools.cached_property
    def fingerprint(self) -> str:
        """All judged pairs and their grades."""
        digest = hashlib.blake2b(digest_size=16)
        for pair in sorted(self._grades.items()):
            digest.update(repr(pair).encode())
        return f"judgements {digest.hexdigest()}"

    def __call__(self, pairs: Sequence[Pair]) -> npt.NDArray[np.float32]:
        """float32 (len(pairs),) scores of (query, document) texts."""
        return np.array([self._grades.get(pair, 0) for pair in pairs], np.float32)


class MaxSimTeacher:
    """A ColBERT model; in a call each text is encoded once.

    Parameters
    ----------
    model : ColBERT
    batch_size : int
        Most texts in one forward pass.
    """

    def __init__(self, model: ColBERT, *, batch_size: int = 32) -> None:
        self.model = model
        self.batch_size = check_batch_size(batch_size)

    @property
    def fingerprint(self) -> str:
        """Weights, settings of the model and the texts, tokenizer and arithmetic."""
        model = self.model
        settings = settings_fingerprint(model.backbone.config, model.tokenizer.base, model.config)
        return f"maxsim {model.fingerprint()} {settings} {model.backend} {model.dtype}"

    def __call__(self, pairs: Sequence[Pair]) -> npt.NDArray[np.float32]:
        """float32 (len(pairs),) scores of (query, document) texts."""
        queries, rows = _distinct([query for query, _ in pairs])
        documents, columns = _distinct([document for _, document in pairs])
        Q = self.model.encode_queries(queries, batch_size=self.batch_size)
        D = self.model.encode_documents(documents, batch_size=self.batch_size, progress=False)
        scores = np.empty(len(pairs), np.float32)
        order = sorted(range(len(pairs)), key=rows.__getitem__)
        for row, places in itertools.groupby(order, key=rows.__getitem__):
            mine = list(places)
            met = [D[columns[place]] for place in mine]
            doclens = np.array([len(each) for each in met], np.int32)
            scores[mine] = ops.maxsim(Q[row], np.concatenate(met), doclens)
        return scores


class BiEncoderTeacher:
    """An encoder of one vector per text; in a call each text is encoded once.

    Parameters
    ----------
    model : SentenceTransformer, str or Path
        One of sentence-transformers, or what it loads: a folder or hub id. Plain encoders get mean
        pooling. Its own similarity (cosine where it says nothing) is the score, its prompts for
        queries and documents are used.
    dtype : {"auto", "float32", "bfloat16", "float16"}
        As for `CrossEncoderTeacher`.
    device : str, optional
        By default where the given model is; "cpu" for one that is loaded here.
    batch_size : int
        Texts in one forward pass.

    Raises
    ------
    CheckpointError
        The model cannot be read.
    BackendUnavailable
        The device is not there.
    MissingDependencyError
        sentence-transformers is not installed.
    """

    def __init__(
        self,
        model: SentenceTransformer | str | Path,
        *,
        dtype: TeacherDType = "auto",
        device: str | None = None,
        batch_size: int = 32,
    ) -> None:
        if device is not None:
            check_device(device)
        if isinstance(model, (str, Path)):
            loaded: SentenceTransformer = load_with(
                "SentenceTransformer", model, device=device or "cpu"
            )
        else:
            loaded = model if device is None else model.to(device)
        self.model = loaded.eval()
        self.dtype = resolve_teacher_dtype(dtype, loaded.device)
        self.batch_size = check_batch_size(batch_size)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Weights, settings, tokenizer, pooling, prompts, similarity and arithmetic; once."""
        model = self.model
        settings = f"{model} {model.max_seq_length} {model.truncate_dim} {model.similarity_fn_name}"
        digest = hashlib.blake2b(settings.encode(), digest_size=8).hexdigest()
        return f"bi-encoder {foreign_fingerprint(model)} {digest} {self.dtype}"

    @torch.inference_mode()
    def __call__(self, pairs: Sequence[Pair]) -> npt.NDArray[np.float32]:
        """float32 (len(pairs),) scores of (query, document) texts."""
        queries, rows = _distinct([query for query, _ in pairs])
        documents, columns = _distinct([document for _, document in pairs])
        options: Any = {
            "batch_size": self.batch_size,
            "show_progress_bar": False,
            "convert_to_tensor": True,
        }
        with autocast(self.model.device, self.dtype):
            Q: torch.Tensor = self.model.encode_query(queries, **options)
            D: torch.Tensor = self.model.encode_document(documents, **options)
        scores = self.model.similarity_pairwise(Q.float()[rows], D.float()[columns])
        found: npt.NDArray[np.float32] = scores.float().cpu().numpy()
        return found


def _distinct(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """The different texts, and each text's place among them."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    return list(places), [places[text] for text in texts]
