"""The collection that the default model is trained on, from judged collections and plain passages.

    python default_collection.py --beir BEIR --passages passages*.jsonl.gz --prose 12000 \
        --out FOLDER [--written default_questions.jsonl.gz --graded default_graded.jsonl.gz]

Writes a folder in BEIR layout whose train split has the labelled questions of six collections'
train splits, and questions made of their passages and of English prose (`pseudo_queries`). No test
or development question is in it, no passage that one of those has as an answer, and none that also
is in LiveQA; except that sentences of Climate-FEVER are answers to questions of several splits, and
so are kept.

A language model has written more, for 12,000 passages of prose and seed 0; the files lie beside
this one. `--written` adds questions that it wrote for one passage each. `--graded` adds those that
it wrote for twelve neighbouring passages, which it has graded all from 0 to 3, and for each round
of the recipe a file of n-way tuples, graded-1.jsonl and graded-2.jsonl: groups of eight of these
questions and sixteen others that the same passages answer. The second has new groups, and the
questions of nearly all groups again, over three passages of the group and nine that the model found
for three of its questions.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from beir import write_beir

from colbert_fast.corpus import read_corpus
from colbert_fast.evaluation import load_beir
from colbert_fast.training.data import NWay, training_positives, write_tuples
from colbert_fast.training.pseudo import is_prose, pseudo_queries

# Name: most labelled questions, lowest grade of a positive.
LABELLED = {
    "medquad": (3000, 1),
    "debian_desc": (1500, 1),
    "scitldr": (1200, 1),
    "skeptics_se": (816, 1),
    "pubmedqa": (400, 1),
    "climate_fever_sent": (767, 2),
}
WORDS = 100  # of a passage
POSITIVES = 2  # of a question
# The others in a group of graded questions; at most so many of them labelled, labelled or written.
OTHERS, LABELLED_OTHERS, UNMADE_OTHERS = 16, 8, 12


@dataclass
class Collection:
    documents: dict[str, str] = field(default_factory=dict)
    queries: dict[str, str] = field(default_factory=dict)
    positives: dict[str, dict[str, int]] = field(default_factory=dict)  # with grades


def crop(text: str) -> str:
    return " ".join(text.split()[:WORDS])


def answers(folder: Path) -> set[str]:
    """Documents that a development or test question has as an answer."""
    splits = [split for split in ("dev", "test") if list(folder.glob(f"qrels/{split}.tsv*"))]
    judged = [load_beir(folder, split=split).qrels for split in splits]
    return {document for qrels in judged for grades in qrels.values() for document in grades}


def beginning(text: str) -> str:
    return " ".join(text.split()[:25]).lower()


def add_labelled(
    made: Collection, folder: Path, most: int, grade: int, foreign: set[str], seed: int
) -> None:
    """Put in the train questions of one collection, and their answers."""
    beir = load_beir(folder, split="train")
    texts = {str(each["id"]): str(each["text"]) for each in beir.documents()}
    # The sentences of Climate-FEVER answer questions of several splits.
    banned = set() if folder.name == "climate_fever_sent" else answers(folder)
    positives = training_positives(folder, min_grade=grade)
    names = sorted(positives)
    count = 0
    for place in np.random.default_rng(seed).permutation(len(names)).tolist():
        query = names[place]
        good = [
            name
            for name in positives[query]
            if name not in banned and beginning(texts[name]) not in foreign
        ]
        if good and count < most:
            count += 1
            key = f"{folder.name}-{query}"
            made.queries[key] = beir.queries[query]
            made.positives[key] = {f"{folder.name}-{name}": 1 for name in good[:POSITIVES]}
            for name in good[:POSITIVES]:
                made.documents[f"{folder.name}-{name}"] = crop(texts[name])


def prose(files: Iterable[Path], most: int, seed: int) -> Iterator[tuple[str, str]]:
    """Passages of English sentences, at most a tenth of them from one source if `src` says it."""
    by_source: dict[str, list[tuple[str, str]]] = {}
    for file in files:
        for each in read_corpus(file):
            if is_prose(str(each["text"])):
                by_source.setdefault(str(each.get("src", "")), []).append(
                    (str(each["id"]), each["text"])
                )
    rng = np.random.default_rng(seed)
    chosen = [
        passages[place]
        for source, passages in sorted(by_source.items())
        for place in rng.permutation(len(passages))[: most // 10 if source else most].tolist()
    ]
    yield from (chosen[place] for place in rng.permutation(len(chosen))[:most].tolist())


def add_written(made: Collection, file: Path) -> int:
    """Put in the questions that were written for passages of the collection; returns how many."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for number, each in enumerate(map(json.loads, lines)):
            if each["document"] in made.documents:
                made.queries[f"written-{number}"] = each["text"]
                made.positives[f"written-{number}"] = {each["document"]: 1}
    return sum(name.startswith("written-") for name in made.queries)


def add_graded(made: Collection, file: Path) -> dict[int, list[tuple[list[str], list[str]]]]:
    """Put in the questions that were graded; returns each round's groups: documents, questions.

    A group `of` another has the questions of that one, graded over more documents.
    """
    asked: dict[str, list[str]] = {}
    for query, judged in made.positives.items():
        for name in judged:
            asked.setdefault(name, []).append(query)
    rounds: dict[int, list[tuple[list[str], list[str]]]] = {}
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for each in map(json.loads, lines):
            number, documents = each["group"], each["documents"]
            graded = [f"graded-{each.get('of', number)}.{place}" for place in range(1, 9)]
            if "of" not in each:
                made.queries.update(zip(graded, each["queries"], strict=True))
            for query, grades in zip(graded, each["grades"], strict=True):
                judged = zip(documents, grades, strict=True)
                good = {name: grade for name, grade in judged if grade > 0}
                made.positives.setdefault(query, {}).update(good)
            queries = graded + others(documents, asked, number)
            if len(queries) != len(graded) + OTHERS or not made.documents.keys() >= {*documents}:
                raise SystemExit(f"{file}: group {number} is for another collection")
            rounds.setdefault(each["round"], []).append((documents, queries))
    return rounds


def others(documents: list[str], asked: Mapping[str, list[str]], number: int) -> list[str]:
    """Questions that some of these documents answer, at random, but by kind."""
    names = list(dict.fromkeys(query for name in documents for query in asked.get(name, ())))
    np.random.default_rng((5, number)).shuffle(names)
    kinds: dict[str, list[str]] = {"labelled": [], "written": [], "made": []}
    for name in names:
        source = name.partition("-")[0]
        kind = "labelled" if source in LABELLED else source if source == "written" else "made"
        kinds[kind].append(name)
    chosen = kinds["labelled"][:LABELLED_OTHERS]
    chosen += kinds["written"][: UNMADE_OTHERS - len(chosen)]
    chosen += kinds["made"][: OTHERS - len(chosen)]
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--beir", type=Path, required=True, help="folder of the collections")
    parser.add_argument("--passages", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prose", type=int, default=6000, help="passages of prose")
    parser.add_argument("--written", type=Path, help="jsonl.gz of document, text")
    parser.add_argument("--graded", type=Path, help="jsonl.gz of documents, queries, grades")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    made = Collection()
    foreign = {beginning(str(each["text"])) for each in read_corpus(options.beir / "liveqa_med")}
    for name, (most, grade) in LABELLED.items():
        add_labelled(made, options.beir / name, most, grade, foreign, options.seed)
    labelled = len(made.queries)
    made.documents.update(prose(options.passages, options.prose, options.seed))
    pseudo = pseudo_queries(made.documents, seed=options.seed)
    written = add_written(made, options.written) if options.written else 0
    made.documents.update(pseudo.documents)
    made.queries.update(pseudo.queries)
    made.positives.update(pseudo.positives)
    rounds = add_graded(made, options.graded) if options.graded else {}
    write_beir(options.out, made.documents, made.queries, made.positives, split="train")
    for number, groups in rounds.items():
        write_tuples(
            options.out / f"graded-{number}.jsonl",
            (
                NWay(query, tuple(sorted(names, key=lambda name: -grades.get(name, 0))))
                for names, queries in groups
                for query in queries
                for grades in (made.positives[query],)
            ),
        )
    total = sum(map(len, rounds.values()))
    print(f"{len(made.documents):,} passages, {labelled:,} labelled questions, {written:,} written "
          f"ones, {len(pseudo.queries):,} made ones; {total:,} groups")  # fmt: skip


if __name__ == "__main__":
    main()
