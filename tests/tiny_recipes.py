"""A BEIR folder, models and a recipe so small that a whole run takes seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tiny_models import WORDS, write_plain, write_stanford

BAND = [[0, 10, 1.0]]


def write_sources(folder: Path) -> Path:
    """A folder `beir` of texts that start with their question's word, `colbert` and `encoder`."""
    beir = folder / "beir"
    (beir / "qrels").mkdir(parents=True)
    texts = [" ".join([word, *WORDS[n : n + 4]]) for n, word in enumerate(WORDS)]
    lines = [json.dumps({"_id": f"d{n}", "text": text}) for n, text in enumerate(texts)]
    (beir / "corpus.jsonl").write_text("\n".join(lines))
    lines = [json.dumps({"_id": f"q{n}", "text": word}) for n, word in enumerate(WORDS)]
    (beir / "queries.jsonl").write_text("\n".join(lines))
    rows = [f"q{n}\td{n}\t1" for n in range(len(WORDS))]
    for split in ("train", "test"):
        text = "\n".join(["query-id\tcorpus-id\tscore", *rows])
        (beir / "qrels" / f"{split}.tsv").write_text(text + "\n")
    write_stanford(folder / "colbert", metadata={"query_maxlen": 8, "doc_maxlen": 16})
    write_plain(folder / "encoder")
    return folder


def recipe_values(sources: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """A recipe with every kind of stage."""
    train = {"batch_size": 4, "max_steps": 3, "save_steps": 1, "learning_rate": 1e-3}
    return {
        "output": str(output),
        "collections": [{"name": "words", "folder": str(sources / "beir")}],
        "start": {"model": str(sources / "colbert")},
        "warm_up": {
            "mine": {"sources": ["bm25"], "depth": 10, "nway": 2, "bands": BAND},
            "train": {**train, "losses": {"contrastive": 1.0}},
        },
        "train_teacher": {
            "base": str(sources / "encoder"),
            "mine": {"sources": ["bm25"], "depth": 10, "nway": 3, "bands": BAND},
            "options": {"max_steps": 2, "batch_size": 2, "accumulation_steps": 1},
        },
        "teacher": [
            {"kind": "cross_encoder", "model": "trained"},
            {"kind": "maxsim", "model": str(sources / "colbert"), "weight": 0.5},
            {"kind": "bm25", "weight": 0.5},
        ],
        "rounds": [
            {
                "mine": {"sources": ["model", "bm25"], "depth": 10, "nway": 4, "bands": BAND},
                "train": {**train, "losses": {"kl": 1.0}},
            }
        ],
        "evaluate": [str(sources / "beir")],
        **changes,
    }


def write_recipe(folder: Path, values: dict[str, Any]) -> Path:
    """Write it as YAML."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
