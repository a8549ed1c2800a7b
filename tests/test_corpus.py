"""Text collections and saved embeddings are read as they stand, or refused with file and line."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from colbert_fast.corpus import load_embeddings, read_corpus, save_embeddings


@pytest.mark.parametrize(
    ("name", "contents", "documents"),
    [
        ("a.txt", "one\n\ntwo\r\n", [{"id": 1, "text": "one"}, {"id": 3, "text": "two"}]),
        ("a.tsv", "7\tone\n", [{"id": "7", "text": "one"}]),
        ("a.tsv", "pid\ttitle\ttext\n7\tT\tone\n", [{"id": "7", "text": "T one", "title": "T"}]),
        ("a.jsonl", '{"text": "one"}\n{"text": "two"}\n', [{"id": i} for i in (0, 1)]),
        ("a.jsonl", '{"id": 5, "text": "one", "n": 1}\n', [{"id": 5, "text": "one", "n": 1}]),
        ("a.txt", "\ufeffone\n", [{"id": 1, "text": "one"}]),
    ],
)
def test_read_corpus(tmp_path, name, contents, documents):
    (tmp_path / name).write_bytes(contents.encode())
    for got, wanted in zip(read_corpus(tmp_path / name), documents, strict=True):
        assert wanted.items() <= got.items()


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("a.csv", b"", r"cannot tell the format.*'.csv'"),
        ("a.txt", b"fine\n\xff\n", r"a.txt:2: not UTF-8"),
        ("a.tsv", b"1\tone\nonly one column\n", r"a.tsv:2: wanted 3 columns.*got 1"),
        ("a.tsv", b"id\tname\n", r"a.tsv:1: the header has no 'text'"),
        ("a.jsonl", b'{"id": "1", "text": "a"}\n{"text": "b"}\n', r"a.jsonl:2: give either every"),
        ("a.jsonl", b'{"id": "1", "body": "a"}\n', r"a.jsonl:1: .*got the keys: body, id"),
        ("a.jsonl", b'{"id": [1], "text": "a"}\n', r"a.jsonl:1: the id must be"),
        ("a.jsonl", b"[]\n", r"a.jsonl:1: wanted an object, got list"),
        ("a.txt.gz", gzip.compress(b"one\ntwo\n")[:-9], r"a.txt.gz: damaged gzip"),
        ("a.txt.gz", b"not gzip", r"a.txt.gz: damaged gzip"),
    ],
)
def test_read_corpus_names_file_and_line(tmp_path, name, contents, message):
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(ValueError, match=message):
        list(read_corpus(tmp_path / name))


def test_embeddings_round_trip(tmp_path):
    arrays = [np.eye(8, dtype=np.float32)[:n] for n in (3, 0, 2)]
    save_embeddings(tmp_path / "a.npz", arrays, ids=["a", "b", "c"])
    loaded = load_embeddings(tmp_path / "a.npz")
    assert loaded.embeddings.dtype == np.float16
    assert loaded.ids == ["a", "b", "c"]
    for got, wanted in zip(loaded.texts(), arrays, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("ids", [[1, "a"], ["a\0", "b"], [2, 1], ["é", ""]])
def test_embeddings_keep_their_ids(tmp_path, ids):
    save_embeddings(tmp_path / "a.npz", [np.eye(8)] * 2, ids=ids)
    assert load_embeddings(tmp_path / "a.npz").ids == ids


def test_embeddings_from_npy(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((5, 8), np.float16))
    np.save(tmp_path / "a.doclens.npy", np.array([2, 3]))
    loaded = load_embeddings(tmp_path / "a.npy")
    assert [len(rows) for rows in loaded.texts()] == [2, 3]
    assert loaded.ids is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"doclens": np.array([1]), "x": np.eye(8)}, "wanted .* embeddings .*; got doclens, x$"),
        ({"embeddings": np.ones((2, 8), np.float16)}, "wanted .* doclens; got embeddings$"),
        ({"embeddings": np.ones(8), "doclens": np.array([8])}, "`embeddings` must be.*float64"),
        (
            {"embeddings": np.ones((2, 8), np.float16), "doclens": np.array([3])},
            "add up to the 2 rows",
        ),
        (
            {"embeddings": np.ones((2, 8), np.float16), "doclens": np.array([3, -1])},
            "add up to the 2 rows",
        ),
        (
            {"embeddings": np.ones((2, 8), np.float16), "doclens": np.array([2.0])},
            "`doclens` must be integers",
        ),
        (
            {
                "embeddings": np.ones((2, 8), np.float16),
                "doclens": np.array([2]),
                "ids": np.array(["a", "b"]),
            },
            "2 `ids` for 1 `doclens`",
        ),
        ({"embeddings": np.array([None]), "doclens": np.array([1])}, r"a.npz: not a readable .npz"),
    ],
)
def test_embeddings_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_embeddings(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_foreign_embedding_files_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK something else")
    np.save(tmp_path / "a.doclens.npy", np.array([1]))
    with pytest.raises(ValueError, match=f"{name}: not a readable"):
        load_embeddings(tmp_path / name)
