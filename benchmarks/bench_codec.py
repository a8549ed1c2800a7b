"""What the codecs keep: bits, levels and token pooling, beside their bytes.

    python bench_codec.py DATA/emb/small --cache FOLDER --judged BEIR/{cranfield,med,cisi}

A collection of vectors (peers/README.md) says what is left of the vectors and of the exact ranking,
collections with judgements (BEIR layout, encoded by the default model once and kept in the cache)
what is left of nDCG@10. Rankings are exhaustive over the decoded vectors, so that no search
settings come in; centroids are fitted to all vectors, once for each pooling.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from judged import MEASURE, read_judged

from colbert_fast.compress.codec import NBITS, ResidualCodec
from colbert_fast.compress.kmeans import fit_centroids
from colbert_fast.evaluation import measure
from colbert_fast.kernels import ops

sys.path.append(str(Path(__file__).parent / "peers"))
from inputs import read_inputs, recall

CODECS = ("default", "plaid")
HELDOUT = 50_000  # tokens that levels are fitted to, as in a build
TOP = 100


class Setting(NamedTuple):
    """How vectors are stored; `nbits` None: as they are."""

    pooling: int
    nbits: int | None
    codec: str


class Stored(NamedTuple):
    """A collection as a setting leaves it."""

    setting: Setting
    rows: np.ndarray  # float32, decoded
    doclens: np.ndarray
    bytes: float  # per token stored
    cosine: float  # of decoded to pooled vectors, mean


def settings(poolings: list[int]) -> list[Setting]:
    coded = [(nbits, codec) for nbits in NBITS if nbits <= 4 for codec in CODECS]
    return [Setting(p, *way) for p in poolings for way in [(None, ""), *coded]]


def store(vectors: np.ndarray, doclens: np.ndarray, wanted: list[Setting]) -> Iterator[Stored]:
    """Every setting in turn, poolings in one piece; the default number of centroids."""
    pooling = 0
    for setting in wanted:
        if setting.pooling != pooling:
            pooling = setting.pooling
            rows, lengths = ops.pool(vectors, doclens, pooling)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            k = 1 << int(math.log2(16 * math.sqrt(len(rows))))
            centroids = fit_centroids(rows, k)
            sample = np.random.default_rng(1).choice(len(rows), min(HELDOUT, len(rows)), False)
        if setting.nbits is None:
            yield Stored(setting, rows, lengths, 2.0 * rows.shape[1], 1.0)
            continue
        codec = ResidualCodec.fit(
            centroids, rows[np.sort(sample)], nbits=setting.nbits, name=setting.codec
        )
        columns = codec.encode(rows)
        decoded = codec.decode(columns)
        size = sum(column.nbytes for column in columns.values()) / len(rows)
        cosine = float(np.einsum("nd,nd->n", rows, decoded).mean())
        yield Stored(setting, decoded, lengths, size, cosine)


def ranking(stored: Stored, query: np.ndarray) -> tuple[list[float], list[int]]:
    """Scores and positions of the best documents."""
    scores, ids = ops.top_k(ops.maxsim(query, stored.rows, stored.doclens), TOP)
    return scores.tolist(), ids.tolist()


class Row(NamedTuple):
    """What a setting keeps of a collection of vectors."""

    bytes: float
    share: float  # of the tokens, that are stored
    cosine: float
    recall10: float
    recall100: float


def measure_vectors(folder: Path, wanted: list[Setting]) -> dict[Setting, Row]:
    inputs = read_inputs(folder)
    queries = inputs.queries[: len(inputs.truth)]
    found = {}
    for stored in store(inputs.embeddings, inputs.doclens, wanted):
        ids = [ranking(stored, query)[1] for query in queries]
        at = [recall(ids, inputs.truth, k) for k in (10, 100)]
        share = len(stored.rows) / len(inputs.embeddings)
        found[stored.setting] = Row(stored.bytes, share, stored.cosine, *at)
        print(stored.setting, found[stored.setting], file=sys.stderr)
    return found


def measure_judged(folder: Path, cache: Path, wanted: list[Setting]) -> dict[Setting, float]:
    judged = read_judged(folder, cache)
    found = {}
    for stored in store(judged.vectors, judged.doclens, wanted):
        run = {}
        for name, query in judged.queries.items():
            scores, ids = ranking(stored, query)
            run[name] = [(judged.ids[i], score) for i, score in zip(ids, scores, strict=True)]
        found[stored.setting] = measure(run, judged.qrels, measures=[MEASURE])[MEASURE]
        print(folder.name, stored.setting, found[stored.setting], file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--judged", type=Path, nargs="*", default=[])
    parser.add_argument("--cache", type=Path, help="folder for their vectors; with --judged")
    parser.add_argument("--pooling", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    wanted = settings(options.pooling)
    rows = measure_vectors(options.vectors, wanted)
    values = [measure_judged(folder, options.cache, wanted) for folder in options.judged]
    names = [folder.name for folder in options.judged]
    head = ["pooling", "bits", "codec", "bytes", "of a token before", "cosine", "R@10", "R@100"]
    print("| " + " | ".join([*head, *names]) + " |")
    print("|---" * (len(head) + len(names)) + "|")
    for setting in wanted:
        row = rows[setting]
        cells = [
            str(setting.pooling),
            str(setting.nbits or 16),
            setting.codec or "float16",
            f"{row.bytes:.0f}",
            f"{row.bytes * row.share:.1f}",
            *(f"{value:.3f}" for value in row[2:]),
            *(f"{value[setting]:.4f}" for value in values),
        ]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
