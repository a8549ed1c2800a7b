"""Several indexes searched as one find what a single one would."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colbert_fast import Index, ShardedIndex
from colbert_fast.errors import IndexFormatError
from colbert_fast.evaluation import retrieve
from colbert_fast.reader import IndexReader
from colbert_fast.search.snapshot import Snapshot
from fakes import WordModel
from synthetic import brute_force, clustered, make, sentences


def test_the_best_of_all_shards(tmp_path: Path, rng: np.random.Generator) -> None:
    documents = clustered(rng, 150)
    for start in (0, 60, 90):
        stop = {0: 60, 60: 90, 90: 150}[start]
        make(tmp_path / f"{start}", documents[start:stop], ids=range(start, stop), nbits=8)
    with ShardedIndex([tmp_path / "0", tmp_path / "60", tmp_path / "90"]) as index:
        assert len(index) == 150
        for number in (3, 70, 120):
            hits = index.search(documents[number], k=8)
            assert hits[0].id == number
            scores = brute_force(documents[number], documents)
            np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[:-9:-1], 0.02)
        batch = index.search(documents[:4], k=200, exhaustive=True)
        assert [len(hits) for hits in batch] == [150] * 4
        assert index.search([]) == []
        with pytest.raises(ValueError, match="subset: search the shard"):
            index.search(documents[0], subset=[1])
        with pytest.raises(ValueError, match="candidates: search the shard"):
            index.search(documents[0], candidates=[1])
        with pytest.raises(ValueError, match='mode "hybrid": scores of several indexes'):
            index.search(documents[0], mode="hybrid")
        with pytest.raises(ValueError, match="k must be at least 1"):
            index.search(documents[0], k=0)
    with pytest.raises(ValueError, match="is closed"):
        index.search(documents[0])


def test_what_the_shards_are(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = clustered(rng, 30)
    for part in (0, 10):
        make(tmp_path / f"{part}", rows[part : part + 10], ids=range(part, part + 10))
    with ShardedIndex([tmp_path / "0", tmp_path / "10"]) as index:
        assert index.ids == tuple(range(20))
        assert not index.refresh()
        Index.open(tmp_path / "0").add(rows[20:], ids=range(20, 30), progress=False)
        assert index.refresh()
        info = index.info()
        assert (info["documents"], info["tokens"]) == (30, sum(map(len, rows)))
        assert [each["documents"] for each in info["shards"]] == [20, 10]
        assert repr(index).endswith("10'], documents=30)")
        run = retrieve(index, {"q": rows[25]}, k=1, exhaustive=True)
        assert run["q"][0][0] == "25"
        make(tmp_path / "10", clustered(rng, 20, dim=32), overwrite=True)
        with pytest.raises(ValueError, match=r"10' has dim 32, .*0' has 64"):
            index.refresh()


def test_texts_are_encoded_once_and_hits_explain_themselves(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    model: Any = WordModel()
    texts = sentences(rng, 40)
    for part in (0, 20):
        make(tmp_path / f"{part}", list(enumerate(texts[part : part + 20])), model=model)
    index = ShardedIndex([tmp_path / "0", tmp_path / "20"], model=model)
    hits = index.search("blue sky", k=3)
    assert all("blue" in str(hit.text) or "sky" in str(hit.text) for hit in hits)
    assert {match.query_token for match in hits[0].explain()} >= {"blue", "sky"}
    assert index.search("blue sky", k=3, mode="rerank", ndocs=40) == hits


def test_a_query_of_embeddings_with_its_text(tmp_path: Path, rng: np.random.Generator) -> None:
    model: Any = WordModel()
    texts = sentences(rng, 40)
    for part in (0, 20):
        make(tmp_path / f"{part}", list(enumerate(texts[part : part + 20])), model=model)
    index = ShardedIndex([tmp_path / "0", tmp_path / "20"], model=model)
    [vectors] = model.encode_queries(["blue sky"])
    expected = index.search("blue sky", k=3, mode="rerank")
    assert len(expected) == 3
    assert index.search(vectors, k=3, mode="rerank", texts="blue sky") == expected
    assert index.search([vectors], k=3, mode="rerank", texts=["blue sky"]) == [expected]
    with pytest.raises(TypeError, match="texts: expected a text, got list"):
        index.search(vectors, mode="rerank", texts=["blue sky"])
    with pytest.raises(ValueError, match="texts= means nothing in mode 'default'"):
        index.search(vectors, texts="blue sky")


def test_a_filter_over_shards_with_other_keys(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = clustered(rng, 6)
    keys: list[dict[str, Any]] = [{"lang": "de"}, {"lang": "en"}, {"year": 1}, {"year": 2}, {}, {}]
    items = [{"id": n, "embeddings": rows[n], **keys[n]} for n in range(6)]
    for part in (0, 2, 4):
        make(tmp_path / f"{part}", items[part : part + 2])
    with ShardedIndex([tmp_path / "0", tmp_path / "2", tmp_path / "4"]) as index:

        def found(condition: Any) -> list[Any]:
            return sorted(hit.id for hit in index.search(rows[0], filter=condition))

        assert found("lang = 'de'") == [0]
        assert found("lang IS NULL") == [2, 3, 4, 5]
        assert found(('"lang" = ? OR year = ?', ["en", 2])) == [1, 3]
        with pytest.raises(ValueError, match=r"the key 'size'; the keys are: 'lang', 'year'$"):
            found("size = 1")


def test_shards_that_do_not_fit(tmp_path: Path, rng: np.random.Generator) -> None:
    make(tmp_path / "a", clustered(rng, 20))
    make(tmp_path / "b", clustered(rng, 20, dim=32))
    with pytest.raises(ValueError, match=r"b' has dim 32, .*a' has 64"):
        ShardedIndex([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(ValueError, match="there is no index"):
        ShardedIndex([])
    with pytest.raises(IndexFormatError, match="no such file"):
        ShardedIndex([tmp_path / "a", tmp_path / "c"])


def test_a_device_for_all_shards_or_one_for_each(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = clustered(rng, 40)
    folders = [tmp_path / f"{start}" for start in range(0, 40, 10)]
    for start, folder in zip(range(0, 40, 10), folders, strict=True):
        make(folder, rows[start : start + 10], ids=range(start, start + 10))
    expected = ShardedIndex(folders).search(rows[:3])
    opened: list[str] = []
    together = threading.Barrier(4, timeout=60)

    class Waiting(IndexReader):
        def search(self, *args: Any, **options: Any) -> Any:
            together.wait()
            return super().search(*args, **options)

    def open_on(path: Any, *, model: Any, device: str, **_: None) -> IndexReader:
        opened.append(device)
        return Waiting(Snapshot.open(path), model=model)

    monkeypatch.setattr(IndexReader, "open", open_on)
    devices = ["cuda:0", "cuda:0", "cuda:1", "cpu"]
    for given in (devices, "cuda"):
        with ShardedIndex(folders, device=given) as index:
            assert index.search(rows[:3]) == expected
        with pytest.raises(ValueError, match="is closed"):
            index.search(rows[0])
    assert opened == [*devices, *["cuda"] * 4]
    with pytest.raises(ValueError, match="device: got 1 for 4 indexes"):
        ShardedIndex(folders, device=["cuda:0"])
