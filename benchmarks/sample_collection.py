"""A small collection out of a judged one, with the passages that are easily confused.

    python sample_collection.py BEIR/medquad --split dev --queries 150 --documents 2500 --out FOLDER

For quick comparisons of models. Draws questions of the split, keeps the passages that are judged
for them and BM25's best 40 for each, and where these are fewer than `--documents` fills up with
others at random. Writes a folder in BEIR layout with the same split.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from beir import write_beir

from colbert_fast.evaluation import load_beir
from colbert_fast.training.mining import mine

DEPTH = 40  # of BM25


def sample(folder: Path, out: Path, *, split: str, queries: int, documents: int, seed: int) -> None:
    """Write the sample; its texts are those of `folder`, in its order."""
    out.mkdir(parents=True)  # or say now that it is there
    beir = load_beir(folder, split=split)
    texts = {str(each["id"]): str(each["text"]) for each in beir.documents()}
    rng = np.random.default_rng(seed)
    names = sorted(beir.qrels)
    chosen = sorted(names[i] for i in rng.permutation(len(names))[:queries].tolist())
    questions = {name: beir.queries[name] for name in chosen}
    found = mine("bm25", questions, texts, depth=DEPTH, progress=False)
    kept = {name for query in chosen for name in beir.qrels[query] if name in texts}
    kept |= {name for ranking in found for name in ranking.document_ids}
    others = [name for name in texts if name not in kept]
    more = max(0, documents - len(kept))
    kept |= {others[i] for i in rng.permutation(len(others))[:more].tolist()}
    judged = {
        query: {name: grade for name, grade in beir.qrels[query].items() if name in kept}
        for query in chosen
    }
    passages = {name: text for name, text in texts.items() if name in kept}
    write_beir(out, passages, questions, judged, split=split)
    print(f"{out}: {len(questions):,} questions, {len(kept):,} passages")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--queries", type=int, default=150)
    parser.add_argument("--documents", type=int, default=2500, help="fill up to so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = vars(parser.parse_args())
    sample(options.pop("folder"), options.pop("out"), **options)


if __name__ == "__main__":
    main()
