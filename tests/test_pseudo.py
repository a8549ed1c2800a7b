"""Pseudo-queries: what each kind takes from a passage, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from colbert_fast.training.collections import load_collection, write_questions
from colbert_fast.training.pseudo import is_prose, pseudo_queries
from colbert_fast.training.recipe import Collection

TIDES = (
    "The Moon pulls at the oceans of the Earth from afar. The water rises and falls twice a day in "
    "most harbours. Sailors print tables of the tide for each year. Spring tides follow a new moon."
)
BREAD = "Yeast turns sugar into gas, which makes the dough rise. Bakers knead the dough for long."
DOCUMENTS = {"tides": TIDES, "bread": BREAD, "short": "No."}


def test_keywords_are_words_of_the_passage_in_its_order() -> None:
    made = pseudo_queries(DOCUMENTS, kinds=["keywords"])
    assert set(made.queries) == {"keywords-tides", "keywords-bread"}
    words = made.queries["keywords-tides"].split()
    assert 2 <= len(words) <= 5
    places = [TIDES.lower().index(word) for word in words]
    assert places == sorted(places)
    assert made.documents == DOCUMENTS


def test_keywords_tell_the_passage_from_the_others() -> None:
    # "common" is as frequent in each passage as the others, but it is in all of them.
    documents = {
        str(i): " ".join(["common", *(letter * 3 + "x" * i for letter in "abcdefg")])
        for i in range(9)
    }
    made = pseudo_queries(documents, kinds=["keywords"])
    assert len(made.queries) == 9
    assert not any("common" in query for query in made.queries.values())


def test_keywords_of_other_alphabets() -> None:
    documents = {"de": "Müller fährt über_Brücken nach Köln2", "ru": "Москва столица России"}
    made = pseudo_queries(documents, kinds=["keywords"])
    words = {"müller", "fährt", "über", "brücken", "nach", "köln"}
    assert set(made.queries["keywords-de"].split()) <= words
    assert set(made.queries["keywords-ru"].split()) <= {"москва", "столица", "россии"}


def test_crop_is_a_part_of_one_sentence() -> None:
    made = pseudo_queries(DOCUMENTS, kinds=["crop"])
    assert set(made.queries) == {"crop-tides", "crop-bread"}
    query = made.queries["crop-tides"]
    assert any(query in sentence + "." for sentence in TIDES.split(". "))


def test_cloze_leaves_the_passage_without_its_sentence() -> None:
    made = pseudo_queries(DOCUMENTS, kinds=["cloze"], cloze_share=1.0)
    assert set(made.queries) == {"cloze-tides"}  # the others have fewer than three sentences
    assert made.positives == {"cloze-tides": {"tides": 1}}
    assert made.queries["cloze-tides"] in TIDES
    assert made.queries["cloze-tides"] not in made.documents["tides"]
    assert made.documents["bread"] == BREAD


def test_other_kinds_are_made_of_what_the_cloze_leaves() -> None:
    for seed in range(20):
        made = pseudo_queries(DOCUMENTS, cloze_share=1.0, seed=seed)
        assert made.queries["crop-tides"] in made.documents["tides"]


def test_seed_decides() -> None:
    assert pseudo_queries(DOCUMENTS, seed=3) == pseudo_queries(DOCUMENTS, seed=3)
    assert len({str(pseudo_queries(DOCUMENTS, seed=seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("text", "prose"),
    [
        (TIDES, True),
        ("public static final int TAG_VDMX 1447316824", False),
        ("La mer monte et descend deux fois par jour, dit le pêcheur à sa fille.", False),
        ("", False),
    ],
)
def test_is_prose(text: str, prose: bool) -> None:
    assert is_prose(text) is prose


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"kinds.*'title'"):
        pseudo_queries(DOCUMENTS, kinds=["title"])
    with pytest.raises(ValueError, match=r"cloze_share.*1.5"):
        pseudo_queries(DOCUMENTS, cloze_share=1.5)


def test_only_passages_whose_cloze_is_chosen_are_cut(tmp_path: Path) -> None:
    documents = {f"d{n}": TIDES.replace("Moon", f"moon {n}") for n in range(40)}
    lines = [json.dumps({"_id": name, "text": text}) for name, text in documents.items()]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    collection = Collection(
        "made", documents=tmp_path / "texts.jsonl", pseudo_queries=True, limit=9
    )
    write_questions(collection, tmp_path, seed=0)
    loaded = load_collection(collection, tmp_path)
    cloze = {f"d{name.partition('-d')[2]}" for name in loaded.queries if name.startswith("cloze-")}
    assert cloze
    assert {name for name, text in loaded.documents.items() if text != documents[name]} == cloze
