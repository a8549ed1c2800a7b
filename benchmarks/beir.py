"""Writing folders in BEIR layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def write_beir(
    out: Path,
    documents: Mapping[str, str],
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    *,
    split: str,
) -> None:
    """Texts by id, and the grades of each query's documents."""
    (out / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", documents), ("queries", queries)):
        with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for key, text in texts.items():
                file.write(json.dumps({"_id": key, "text": text}) + "\n")
    with (out / "qrels" / f"{split}.tsv").open("w", encoding="utf-8") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        for query, grades in qrels.items():
            file.writelines(f"{query}\t{name}\t{grade}\n" for name, grade in grades.items())
