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
from colbert_fast.search.bm25 import BM25
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


def test_many_blocks_and_many_words(monkeypatch: pytest.MonkeyPatch) -> None:
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
    index = index_of([None, None])
    assert index.postings(["word"]) == {}
    ids, scores = BM25([index]).search(["word"], 3)
    assert ids.tolist() == [[-1, -1, -1]]
    assert np.isneginf(scores).all()


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
    expected = np.array(bm25(TEXTS, query))
    ids, scores = BM25(parts).search([query, "cat"], 4)
    there = [i for i in np.argsort(-expected, kind="stable") if expected[i] > 0]
    assert ids[0].tolist() == there + [-1] * (4 - len(there))
    np.testing.assert_allclose(scores[0, : len(there)], expected[there], rtol=1e-5)
    assert ids[1, :2].tolist() == [4, 0]


def test_bm25_under_a_mask_and_with_ties() -> None:
    index = BM25([index_of(["same word"] * 50 + ["word"])])
    assert index.search(["word"], 5)[0].tolist() == [[50, 0, 1, 2, 3]]
    mask = np.arange(51) % 10 == 4
    assert index.search(["word"], 9, mask)[0].tolist() == [[4, 14, 24, 34, 44, -1, -1, -1, -1]]
