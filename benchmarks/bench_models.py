"""Retrieval models side by side on judged collections: the table of the default model's card.

    python bench_models.py BEIR/{cranfield,cisi,med} --cache FOLDER \
        --systems bm25 bi-encoder untrained default CHECKPOINT CHECKPOINT,nbits=2

A system is one of the names above, `teacher` (the sum that the default model learned from reranks
BM25's best 100) or a checkpoint folder, with options behind commas: `document_length=300`,
`query_length=64`, and `nbits=2` for an index searched exhaustively instead of exact MaxSim over
float16 vectors. A collection is a folder in BEIR layout, with `:dev` behind it
for another split than test. Cells are means of a measure over the queries in percent; `p` is that
of the paired t-test of all queries of all collections together against the system of `--against`,
and a cell's mark * says that the same test within the collection gives less than 0.05.

Needs scipy and ir-measures, and for the systems bm25 and teacher the packages bm25s and PyStemmer.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from judged import MEASURE
from scipy.stats import ttest_rel

from colbert_fast import ColBERT, Index, maxsim
from colbert_fast.evaluation import load_beir
from colbert_fast.model.config import ModelConfig
from colbert_fast.model.default import minilm_folder
from colbert_fast.model.parts import Checkpoint
from colbert_fast.model.projection import Projection
from colbert_fast.model.weights import load_backbone, load_tokenizer
from colbert_fast.training.files import replacing

K = 100
BI_ENCODER_LENGTH = 256  # what all-MiniLM-L6-v2 was made for
TEACHER_MAXSIM = "untrained,query_length=64"


class Collection(NamedTuple):
    name: str
    ids: list[str]
    texts: list[str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]

    @classmethod
    def read(cls, source: str) -> Collection:
        folder, _, split = source.partition(":")
        beir = load_beir(folder, split=split or "test")
        documents = list(beir.documents())
        ids, texts = ([str(document[key]) for document in documents] for key in ("id", "text"))
        name = Path(folder).name + (f"-{split}" if split else "")
        return cls(name, ids, texts, beir.queries, beir.qrels)


class Ragged(NamedTuple):
    """Token vectors of texts, back to back."""

    rows: np.ndarray  # (n_tokens, dim)
    lengths: np.ndarray  # int32 (n_texts,)

    def split(self) -> list[np.ndarray]:
        return np.split(self.rows, np.cumsum(self.lengths)[:-1])


@dataclass(frozen=True)
class System:
    """`name,option=value,...` as given on the command line."""

    label: str
    name: str
    lengths: dict[str, int]
    nbits: int | None

    @classmethod
    def parse(cls, label: str) -> System:
        name, *parts = label.split(",")
        options = {key: int(value) for key, value in (part.split("=") for part in parts)}
        nbits = options.pop("nbits", None)
        unknown = set(options) - {"document_length", "query_length"}
        if unknown:
            raise argparse.ArgumentTypeError(f"{label}: unknown option {min(unknown)!r}")
        return cls(label, name, options, nbits)

    def model(self) -> ColBERT:
        if self.name == "untrained":
            return untrained(**self.lengths)
        return ColBERT.from_pretrained(self.name, **self.lengths)


def vectors_file(cache: Path, model: ColBERT, collection: Collection) -> Path:
    """Where the vectors of a model and a collection are kept, by all that they depend on."""
    digest = hashlib.blake2b(digest_size=8)
    arithmetic = (model.backend, str(model.dtype))
    for part in (model.config, arithmetic, collection.queries, collection.ids, collection.texts):
        digest.update(repr(part).encode())
    return cache / model.fingerprint() / f"{collection.name}-{digest.hexdigest()}.npz"


def keep(file: Path, **arrays: np.ndarray) -> None:
    """Write arrays so that a killed run leaves no half of a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial, partial.open("wb") as out:
        np.savez(out, **arrays)


def untrained(**changes: object) -> ColBERT:
    """MiniLM's own token vectors as a ColBERT model of 384 dimensions."""
    backbone = load_backbone(minilm_folder(), allow_pickle=False)
    config = ModelConfig(dim=backbone.config.hidden_size, do_query_expansion=False)
    config = replace(config, **changes)
    parts = Checkpoint(config, load_tokenizer(minilm_folder()), backbone, Projection([]))
    return ColBERT(parts, name="bare")


def bm25(collection: Collection) -> np.ndarray:
    """Scores (queries, documents) of Lucene's BM25, English stemmer and stop words."""
    import bm25s
    import Stemmer

    options = {"stopwords": "en", "stemmer": Stemmer.Stemmer("english"), "show_progress": False}
    index = bm25s.BM25(k1=0.9, b=0.4)
    index.index(bm25s.tokenize(collection.texts, **options), show_progress=False)
    words = bm25s.tokenize(list(collection.queries.values()), return_ids=False, **options)
    found = [index.get_scores(each) if each else np.zeros(len(collection.ids)) for each in words]
    return np.stack(found).astype(np.float32)


@torch.inference_mode()
def mean_vectors(model: ColBERT, texts: Sequence[str]) -> np.ndarray:
    """Unit means of the last hidden states, as all-MiniLM-L6-v2 is used: float32 (texts, 384)."""
    ids = model.tokenizer.tokenize_documents(texts)
    out = np.empty((len(texts), model.dim), np.float32)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in range(0, len(order), 16):
        chosen = order[start : start + 16]
        batch = model.tokenizer.batch_documents([ids[i] for i in chosen])
        mask = torch.from_numpy(batch.attention_mask)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.backbone(torch.from_numpy(batch.input_ids), mask).last_hidden_state
        total = (hidden.float() * mask[..., None]).sum(1)
        out[chosen] = torch.nn.functional.normalize(total, dim=-1).numpy()
    return out


def bi_encoder(collection: Collection, cache: Path) -> np.ndarray:
    """Cosines (queries, documents); the vectors are kept in `cache`."""
    model = untrained(document_length=BI_ENCODER_LENGTH, skiplist_words=())
    file = vectors_file(cache / "bi-encoder", model, collection)
    if not file.exists():
        queries = mean_vectors(model, list(collection.queries.values()))
        keep(file, queries=queries, documents=mean_vectors(model, collection.texts))
    vectors = np.load(file)
    product: np.ndarray = vectors["queries"] @ vectors["documents"].T
    return product


def token_vectors(system: System, collection: Collection, cache: Path) -> tuple[Ragged, Ragged]:
    """Queries and documents under a model, kept in `cache`."""
    model = system.model()
    file = vectors_file(cache, model, collection)
    if not file.exists():
        queries = model.encode_queries(list(collection.queries.values()))
        documents = model.encode_documents(collection.texts, progress=False)
        keep(
            file,
            queries=np.concatenate(queries),
            querylens=np.array([len(rows) for rows in queries], np.int32),
            documents=np.concatenate(documents).astype(np.float16),
            doclens=np.array([len(rows) for rows in documents], np.int32),
        )
    get = np.load(file).__getitem__
    return Ragged(get("queries"), get("querylens")), Ragged(get("documents"), get("doclens"))


def exact_scores(queries: Ragged, documents: Ragged) -> np.ndarray:
    """MaxSim of every query with every document: float32 (queries, documents)."""
    return np.stack([maxsim(rows, documents.rows, documents.lengths) for rows in queries.split()])


def compressed_scores(queries: Ragged, documents: Ragged, nbits: int) -> np.ndarray:
    """The same by exhaustive search of an index: only the best K are found, others are -inf."""
    found = np.full((len(queries.lengths), len(documents.lengths)), -np.inf, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path, rows = Path(folder) / "bench.cf", documents.split()
        ids = list(range(len(rows)))
        with Index.build(path, rows, ids=ids, nbits=nbits, progress=False) as index:
            answers = index.search(queries.split(), k=K, exhaustive=True)
            for scores, hits in zip(found, answers, strict=True):
                scores[[hit.id for hit in hits]] = [hit.score for hit in hits]
    return found


def teacher(collection: Collection, cache: Path) -> np.ndarray:
    """BM25's best K by the sum of z-scores that the default model is distilled from; -inf else."""
    token_rows = token_vectors(System.parse(TEACHER_MAXSIM), collection, cache)
    words = bm25(collection)
    parts = ((words, 0.5), (bi_encoder(collection, cache), 1), (exact_scores(*token_rows), 1))
    best = np.argsort(-words, axis=1, kind="stable")[:, :K]
    total = np.zeros(best.shape)
    for part, weight in parts:
        mine = np.take_along_axis(part, best, axis=1)
        spread = np.maximum(mine.std(axis=1, keepdims=True), 1e-9)
        total += weight * (mine - mine.mean(axis=1, keepdims=True)) / spread
    found = np.full(words.shape, -np.inf, np.float32)
    np.put_along_axis(found, best, total.astype(np.float32), axis=1)
    return found


def scores(system: System, collection: Collection, cache: Path) -> np.ndarray:
    """Scores of every query with every document: float32 (queries, documents)."""
    if system.name == "bm25":
        return bm25(collection)
    if system.name == "bi-encoder":
        return bi_encoder(collection, cache)
    if system.name == "teacher":
        return teacher(collection, cache)
    queries, documents = token_vectors(system, collection, cache)
    if system.nbits is None:
        return exact_scores(queries, documents)
    return compressed_scores(queries, documents, system.nbits)


def per_query(found: np.ndarray, collection: Collection, measure: str) -> np.ndarray:
    """The measure of each query, in percent, in the order of the queries."""
    import ir_measures

    best = np.argsort(-found, axis=1, kind="stable")[:, :K]
    run = {
        query: {collection.ids[i]: float(row[i]) for i in top}
        for query, row, top in zip(collection.queries, found, best, strict=True)
    }
    parsed = ir_measures.parse_measure(measure)
    values = ir_measures.iter_calc([parsed], collection.qrels, run)
    by_query = {value.query_id: value.value for value in values}
    return 100 * np.array([by_query[query] for query in collection.queries])


def p_value(mine: np.ndarray, other: np.ndarray) -> float:
    return 1.0 if np.array_equal(mine, other) else float(ttest_rel(mine, other).pvalue)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("collections", nargs="+", metavar="FOLDER[:SPLIT]")
    parser.add_argument("--systems", type=System.parse, nargs="+", required=True)
    parser.add_argument("--against", help="the system to test the others against; default: first")
    parser.add_argument("--cache", type=Path, required=True, help="folder for their vectors")
    parser.add_argument("--measure", default=MEASURE)
    options = parser.parse_args()
    systems: list[System] = options.systems
    against = options.against or systems[0].label
    if against not in [system.label for system in systems]:
        parser.error(f"--against: {against!r} is none of --systems")
    values: dict[str, list[np.ndarray]] = {system.label: [] for system in systems}
    names = []
    for source in options.collections:
        collection = Collection.read(source)
        names.append(collection.name)
        for system in systems:
            found = scores(system, collection, options.cache)
            values[system.label].append(per_query(found, collection, options.measure))
            mean = values[system.label][-1].mean()
            print(f"{collection.name}: {system.label} {mean:.1f}", flush=True)
    print("\n| system |", " | ".join(names), "| mean | p |\n|" + "---|" * (len(names) + 3))
    for label, parts in values.items():
        pairs = list(zip(parts, values[against], strict=True))
        marks = ["*" if p_value(mine, other) < 0.05 else "" for mine, other in pairs]
        cells = [f"{part.mean():.1f}{mark}" for part, mark in zip(parts, marks, strict=True)]
        mean = np.mean([part.mean() for part in parts])
        p = p_value(np.concatenate(parts), np.concatenate(values[against]))
        print(f"| {label} |", " | ".join(cells), f"| {mean:.1f} | {p:.2g} |")


if __name__ == "__main__":
    main()
