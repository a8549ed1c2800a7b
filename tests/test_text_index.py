"""The words of stored texts, and BM25 over them."""

from __future__ import annotations

import math
import sqlite3
import weakref
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from colbert_fast.errors import IndexFormatError
from colbert_fast.search.bm25 import BM25, best
from colbert_fast.storage import text_index
from colbert_fast.storage.text_index import TextIndex, count_terms, write_text_index

TEXTS = [
    "The cats sat. A cat!",
    None,
    "Dogs run; the dog ran",
    "",
    "cat dog cat dog cat",
    "Ünïcode",
]


def store_of(texts: Sequence[str | None]) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE documents (pid INTEGER PRIMARY KEY, text TEXT)")
    connection.executemany("INSERT INTO documents VALUES (?, ?)", enumerate(texts))
    write_text_index(connection)
    return connection


def index_of(texts: Sequence[str | None]) -> TextIndex:
    return open_index(store_of(texts), len(texts))


def open_index(connection: sqlite3.Connection, count: int) -> TextIndex:
    index = TextIndex(
        lambda statement, values: connection.execute(statement, values).fetchall(),
        Path("a.sqlite"),
        count,
    )
    weakref.finalize(index, connection.close)
    return index


def bm25(texts: Sequence[str | None], query: str) -> list[float]:
    """The definition, word by word."""
    documents = count_terms([text or "" for text in texts])
    lengths = [sum(document.values()) for document in documents]
    with_text = sum(length > 0 for length in lengths)
    mean = sum(lengths) / with_text
    scores = [0.0] * len(texts)
    for term, times in count_terms([query])[0].items():
        n = sum(term in document for document in documents)
        weight = times * math.log(1 + (with_text - n + 0.5) / (n + 0.5))
        for i, document in enumerate(documents):
            count = document[term]
            scores[i] += weight * count / (count + 1.2 * (0.25 + 0.75 * lengths[i] / mean))
    return scores


def test_words_are_folded_and_stemmed() -> None:
    assert count_terms(["Cats, CAT's running!", "", 'Ünïcode ("*^:- OR NEAR']) == [
        Counter({"cat": 2, "s": 1, "run": 1}),
        Counter(),
        Counter({"unicod": 1, "or": 1, "near": 1}),
    ]
    assert count_terms([]) == []


def test_what_is_stored() -> None:
    index = index_of(TEXTS)
    assert index.lengths.tolist() == [5, 0, 5, 0, 5, 1]
    found = index.postings(["cat", "dog", "nothing", "cat"])
    assert sorted(found) == ["cat", "dog"]
    assert found["cat"].positions.tolist() == [0, 4]
    assert found["cat"].counts.tolist() == [2, 3]
    assert found["dog"].positions.tolist() == [2, 4]


@pytest.mark.parametrize("characters", [1, 400, 1 << 20])
def test_many_blocks_and_many_words(monkeypatch: pytest.MonkeyPatch, characters: int) -> None:
    monkeypatch.setattr(text_index, "_CHARACTERS", characters)
    monkeypatch.setattr(text_index, "_BLOCK", 16)
    monkeypatch.setattr(text_index, "_BATCH", 10)
    texts = [" ".join(f"w{j}" for j in range(40) if (i * j) % 7 == 1) * 2 for i in range(100)]
    index = index_of(texts)
    expected = count_terms(texts)
    assert index.lengths.tolist() == [sum(each.values()) for each in expected]
    for term, (positions, counts) in index.postings(f"w{j}" for j in range(40)).items():
        there = [i for i, each in enumerate(expected) if each[term]]
        assert positions.tolist() == there
        assert counts.tolist() == [expected[i][term] for i in there]


def test_counts_stop_at_a_byte() -> None:
    index = index_of(["word " * 1000])
    assert index.postings(["word"])["word"].counts.tolist() == [255]
    assert index.lengths.tolist() == [1000]


def test_no_texts() -> None:
    connection = store_of([None, None])
    assert connection.execute("SELECT * FROM lengths").fetchall() == []
    index = open_index(connection, 2)
    assert index.lengths.tolist() == [0, 0]
    assert index.postings(["word"]) == {}
    assert BM25([index]).score("word").tolist() == [0, 0]


@pytest.mark.parametrize("data", [b"", b"12", b"\6\0\1", b"\1\0\1\0\1\1", b"\2\0\1\0\1\1"])
def test_damaged_postings(data: bytes) -> None:
    connection = store_of(TEXTS)
    connection.execute("UPDATE postings SET data = ? WHERE term = 'cat'", (data,))
    index = open_index(connection, 6)
    with pytest.raises(IndexFormatError, match=r"a\.sqlite: damaged postings of a word in block 0"):
        index.postings(["cat"])
    connection.execute("DELETE FROM lengths")
    with pytest.raises(IndexFormatError, match=r"a\.sqlite: 0 bytes of text lengths, for 6"):
        _ = index.lengths


@pytest.mark.parametrize("query", ["cat", "cats dogs cat", "the", "unknown", "", '"the" OR (NEAR'])
@pytest.mark.parametrize("split", [6, 3, 1])
def test_bm25_is_its_definition_over_any_number_of_stores(query: str, split: int) -> None:
    parts = [index_of(TEXTS[start : start + split]) for start in range(0, 6, split)]
    ranking = BM25(parts)
    assert ranking.num_texts == 4
    scores = ranking.score(query)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, bm25(TEXTS, query), rtol=1e-5)


def test_the_best_under_a_mask_and_with_ties() -> None:
    scores = np.array([1, 0, 3, 1, 1, 2, 0], np.float32)
    assert best(scores, 4).tolist() == [2, 5, 0, 3]
    assert best(scores, 9).tolist() == [2, 5, 0, 3, 4]
    mask = np.array([True, True, False, True, True, False, False])
    assert best(scores, 2, mask).tolist() == [0, 3]
    assert best(scores, 9, mask).tolist() == [0, 3, 4]
    assert best(scores, 9, np.zeros(7, np.bool_)).tolist() == []
