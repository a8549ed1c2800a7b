"""Adding, replacing, deleting, compacting: what is found is what a plain dict would hold."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from colbert_fast.errors import IndexBusyError, IndexFormatError, UnknownDocumentError
from colbert_fast.index import Index
from colbert_fast.search.snapshot import Snapshot
from colbert_fast.storage.lock import writer_lock
from fakes import WordModel
from synthetic import brute_force, clustered, files, make, unit

DIM = 32


@pytest.fixture
def documents(rng: np.random.Generator) -> list[np.ndarray]:
    return clustered(rng, 300, dim=DIM)


def check_content(index: Index, expected: dict[Any, np.ndarray], query: np.ndarray) -> None:
    """The index holds these documents, and searches and scores them as brute force does."""
    assert len(index) == len(expected)
    assert set(index.ids) == set(expected)
    snapshot = index._snapshot
    for key, position in snapshot.library.find(list(expected)).items():
        stored = snapshot.decode(position)
        assert stored.shape == expected[key].shape
        assert (stored * expected[key]).sum(axis=1).mean() > 0.9
    hits = index.search(query, k=len(expected) + 3, exhaustive=True)
    assert {hit.id for hit in hits} == set(expected)
    rows = [snapshot.decode(snapshot.library.find([hit.id])[hit.id]) for hit in hits]
    np.testing.assert_allclose([hit.score for hit in hits], brute_force(query, rows), 1e-4, 1e-6)
    found = index.search(query, k=5)
    assert [hit.id for hit in found] == [hit.id for hit in hits[:5]]


def test_a_document_added_is_found_at_once(tmp_path: Path, documents: list[np.ndarray]) -> None:
    index = make(tmp_path / "a", documents[:200])
    assert index.add(documents[200:], progress=False) == 100
    assert len(index) == 300
    assert index.ids == tuple(range(300))
    assert index.info()["segments"] == 2
    for number in (5, 250):
        assert index.search(documents[number], k=1)[0].id == number
    assert index.search([documents[250]] * 2, k=3, mode="plaid")[0][0].id == 250
    index.verify()
    opened = Index.open(tmp_path / "a")
    assert opened.search(documents[7], k=9) == index.search(documents[7], k=9)


def test_texts_and_metadata_come_along(tmp_path: Path) -> None:
    model: Any = WordModel()
    index = make(tmp_path / "a", [("s", "sky blue"), ("t", "sea green")], model=model)
    index.add([{"id": 9, "text": "red apple", "kind": "fruit"}, "blue light"], progress=False)
    [hit] = index.search("apple", k=1)
    assert (hit.id, hit.text, hit.metadata) == (9, "red apple", {"kind": "fruit"})
    assert index.ids == ("s", "t", 9, 10)
    index.upsert([("s", "stone")], progress=False)
    assert index.search("stone", k=1)[0].text == "stone"
    assert len(index) == 4


def test_after_the_largest_number_ids_are_asked_for(
    tmp_path: Path, documents: list[np.ndarray]
) -> None:
    index = make(tmp_path / "a", documents[:5])
    index.add([documents[5]], ids=[2**63 - 1], progress=False)
    with pytest.raises(
        ValueError, match=r"documents\[0\] carries no id.* 9223372036854775808.*ids="
    ):
        index.add([documents[6]], progress=False)
    index.add([documents[6]], ids=["x"], progress=False)
    index.add([(7, documents[7])], progress=False)
    with pytest.raises(ValueError, match=r"ids\[0\]: 9223372036854775808 does not fit"):
        index.add([documents[8]], ids=[2**63], progress=False)
    assert index.ids == (*range(5), 2**63 - 1, "x", 7)


def test_many_small_additions_make_few_segments(
    tmp_path: Path, documents: list[np.ndarray]
) -> None:
    index = make(tmp_path / "a", documents[:100], num_centroids=16)
    for number in range(100, 160):
        index.add([documents[number]], progress=False)
    assert index.info()["segments"] <= 8
    check_content(index, dict(enumerate(documents[:160])), documents[130])


def test_an_id_that_is_there(tmp_path: Path, documents: list[np.ndarray]) -> None:
    index = make(tmp_path / "a", documents[:20])
    before = files(index.path)
    for ids in ([30, 7], [30, 30]):
        with pytest.raises(ValueError, match=r"ids must be unique: (7 is in the index already|30)"):
            index.add(documents[20:22], ids=ids, progress=False)
    assert files(index.path) == before
    assert index.info()["generation"] == 1
    assert index.upsert(documents[20:22], ids=[30, 7], progress=False) == 2
    assert len(index) == 21
    check_content(
        index,
        {**dict(enumerate(documents[:20])), 30: documents[20], 7: documents[21]},
        documents[21],
    )


def test_ids_of_many_documents_are_looked_up(
    tmp_path: Path, documents: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colbert_fast.indexing.update._IDS_AT_ONCE", 8)
    index = make(tmp_path / "a", documents[:20], num_centroids=16)
    before, buffer = files(index.path), np.empty((1, DIM), np.float32)

    def one_buffer() -> Iterator[np.ndarray]:
        for each in documents[20:40]:
            buffer[:] = each[:1]
            yield buffer

    for last in (0, 7, 8, 19):  # of a lookup, or in the middle of one
        ids = [*range(100, 120)]
        ids[last] = 11
        with pytest.raises(ValueError, match="11 is in the index already"):
            index.add(one_buffer(), ids=ids, progress=False)
    assert files(index.path) == before
    assert index.upsert(one_buffer(), ids=range(10, 30), progress=False) == 20
    expected = dict(enumerate(documents[:10]))
    expected |= {10 + i: each[:1] for i, each in enumerate(documents[20:40])}
    check_content(index, expected, documents[25])


def test_generations_share_centroids(tmp_path: Path, documents: list[np.ndarray]) -> None:
    index = make(tmp_path / "a", documents[:100], num_centroids=16)
    first = index._snapshot.codec
    index.add(documents[100:110], progress=False)
    assert index._snapshot.codec is first
    index.compact(retrain=True, progress=False)
    assert index._snapshot.codec is not first
    again = index._snapshot.codec
    make(tmp_path / "a", documents[100:200], num_centroids=16, overwrite=True)
    assert index.refresh()
    assert index._snapshot.codec is not again
    check_content(index, dict(enumerate(documents[100:200])), documents[130])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([np.ones((2, 8), np.float32)], "dim is 8, other documents have 32"),
        ([np.zeros((2, DIM), np.float32)], "token vector 0 is zero"),
        (["text"], "this index was built from embeddings and names no model"),
        ([np.full((1, DIM), np.nan, np.float32)], "not finite"),
    ],
)
def test_documents_that_are_refused_change_nothing(
    tmp_path: Path, documents: list[np.ndarray], given: Any, message: str
) -> None:
    index = make(tmp_path / "a", documents[:20])
    before = files(index.path)
    with pytest.raises(ValueError, match=message):
        index.add(iter([*given]), progress=False)
    assert files(index.path) == before
    assert len(index.search(documents[0], k=30)) == 20


def test_nothing_to_add(tmp_path: Path, documents: list[np.ndarray]) -> None:
    index = make(tmp_path / "a", documents[:20])
    assert index.add([], progress=False) == 0
    assert index.delete([]) == 0
    assert index.info()["generation"] == 1


def test_deleted_documents_vanish(tmp_path: Path, documents: list[np.ndarray]) -> None:
    index = make(tmp_path / "a", documents[:60], num_centroids=16)
    reader = Index.open(tmp_path / "a")
    with pytest.raises(UnknownDocumentError, match="ids: not in the index: 60"):
        index.delete([3, 60])
    assert index.delete([3, 5, 3]) == 2
    check_content(
        index, {i: each for i, each in enumerate(documents[:60]) if i not in (3, 5)}, documents[3]
    )
    assert 3 not in [hit.id for hit in index.search(documents[3], k=60, mode="plaid")]
    with pytest.raises(UnknownDocumentError, match="subset: not in the index: 3"):
        index.search(documents[3], subset=[3])
    mask = np.zeros(58, np.bool_)
    mask[3] = True  # position 4 of all, by place in `ids`
    assert [hit.id for hit in index.search(documents[3], subset=mask)] == [4]

    assert reader.search(documents[3], k=1)[0].id == 3
    assert reader.refresh()
    assert not reader.refresh()
    assert reader.search(documents[3], k=60) == index.search(documents[3], k=60)
    index.add([documents[3]], ids=[3], progress=False)
    assert index.search(documents[3], k=1)[0].id == 3


def test_default_ids_are_never_used_again(tmp_path: Path, documents: list[np.ndarray]) -> None:
    index = make(tmp_path / "a", documents[:10])
    index.delete([9])
    index.compact(progress=False)
    index.add(documents[10:12], progress=False)
    assert index.ids == (*range(9), 10, 11)


def test_an_index_of_nothing(tmp_path: Path, documents: list[np.ndarray]) -> None:
    index = make(tmp_path / "a", documents[:10])
    index.delete(range(10))
    assert len(index) == 0
    assert index.ids == ()
    assert index.search(documents[0]) == []
    assert index.search(documents[:2], mode="plaid") == [[], []]
    assert index.info()["tokens"] == 0
    index.compact(progress=False)
    index.verify()
    assert len(Index.open(index.path)) == 0
    index.add(documents[:3], progress=False)
    check_content(index, {10: documents[0], 11: documents[1], 12: documents[2]}, documents[1])


@pytest.mark.parametrize("codec", ["default", "plaid", "float16"])
@pytest.mark.parametrize("retrain", [False, True])
def test_compacting(tmp_path: Path, documents: list[np.ndarray], codec: str, retrain: bool) -> None:
    index = make(tmp_path / "a", documents[:100], codec=codec, nbits=4, num_centroids=32)
    index.add(documents[100:150], progress=False)
    index.delete([0, 120, 149])
    expected = {i: documents[i] for i in range(150) if i not in (0, 120, 149)}
    size = index.info()["bytes"]
    before = index.search(documents[9], k=200, exhaustive=True)
    index.compact(retrain=retrain, progress=False)
    info = index.info()
    assert (info["segments"], info["deleted"], info["documents"]) == (1, 0, 147)
    assert info["bytes"] < size or retrain
    assert [each.name for each in index.path.glob("deleted-*")] == []
    check_content(index, expected, documents[9])
    if not retrain:
        assert index.search(documents[9], k=200, exhaustive=True) == before
        generation = info["generation"]
        index.compact(progress=False)
        assert index.info()["generation"] == generation


def test_compacting_gives_what_one_build_would(tmp_path: Path, documents: list[np.ndarray]) -> None:
    """With the same centroids: those of a first document that is deleted afterwards."""
    index = make(tmp_path / "a", documents[:100], num_centroids=32)
    other = make(tmp_path / "b", documents[:100], num_centroids=32)
    for start in range(100, 200, 20):
        index.add(documents[start : start + 20], progress=False)
    other.add(documents[100:200], progress=False)
    for each in (index, other):
        each.compact(progress=False)
    first, second = (
        {path.name: path.read_bytes() for path in each.path.glob("segment-*/*.npy")}
        for each in (index, other)
    )
    assert first == second


def test_drift_adds_centroids(
    tmp_path: Path, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    near = clustered(rng, 400, dim=DIM, topics=20, spread=0.2)
    far = clustered(rng, 400, dim=DIM, topics=20, spread=0.2)
    index = make(tmp_path / "a", near[:300], num_centroids=32)
    index.add(near[300:], progress=False)
    assert index.info()["centroids"] == 32
    assert index.info()["drift"] < 1.1
    assert caplog.text == ""
    before = index.search(near[3], k=5)
    index.add(far, progress=False)
    assert "centroids are added to 32" in caplog.text
    assert index.info()["centroids"] > 40
    assert index.search(near[3], k=5) == before
    check_content(index, dict(enumerate([*near, *far])), far[5])
    index.compact(progress=False)
    check_content(index, dict(enumerate([*near, *far])), far[5])
    index.compact(retrain=True, progress=False)
    check_content(index, dict(enumerate([*near, *far])), far[5])


def test_a_second_writer(tmp_path: Path, documents: list[np.ndarray]) -> None:
    index = make(tmp_path / "a", documents[:20])

    def source() -> Iterator[np.ndarray]:
        yield documents[20]
        with pytest.raises(IndexBusyError, match="written to by another process or thread; wait"):
            Index.open(index.path).delete([1])

    assert index.add(source(), progress=False) == 1
    assert index.delete([1]) == 1


def test_a_writer_that_waits(tmp_path: Path, documents: list[np.ndarray]) -> None:
    index = make(tmp_path / "a", documents[:20])
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with writer_lock(index.path):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(10)
    with pytest.raises(IndexBusyError):
        index.delete([1], timeout=0.1)
    threading.Timer(0.1, leave.set).start()
    assert index.delete([1], timeout=10) == 1
    thread.join()


def test_a_reader_keeps_its_generation(tmp_path: Path, documents: list[np.ndarray]) -> None:
    index = make(tmp_path / "a", documents[:50])
    reader = Index.open(tmp_path / "a")
    expected = reader.search(documents[3], k=50)
    hits = reader.search(documents[4], k=5)
    index.upsert(documents[50:100], ids=range(50), progress=False)
    index.compact(retrain=True, progress=False)
    assert reader.search(documents[3], k=50) == expected
    assert [hit.text for hit in hits] == [None] * 5
    assert len(list(index.path.glob("segment-*"))) == 1


def test_opening_while_others_commit(
    tmp_path: Path, documents: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is read, and the next commit removes what it names before it is opened."""
    from colbert_fast.search import snapshot

    index = make(tmp_path / "a", documents[:20])
    check_sizes, calls = snapshot.check_sizes, 0

    def committing(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            Index(snapshot.Snapshot.open(index.path)).compact(retrain=True, progress=False)
        check_sizes(*arguments)

    monkeypatch.setattr(snapshot, "check_sizes", committing)
    opened = Index.open(tmp_path / "a")
    assert opened.info()["generation"] == 2
    assert len(opened.search(documents[0], k=30)) == 20


def test_a_reader_whose_generation_is_gone_verifies_the_newest(
    tmp_path: Path, documents: list[np.ndarray]
) -> None:
    index = make(tmp_path / "a", documents[:20])
    reader = Index.open(tmp_path / "a")
    index.compact(retrain=True, progress=False)
    reader.verify()
    [path] = index.path.glob("segment-*/codes.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(IndexFormatError, match=r"codes\.npy"):
        reader.verify()


def test_a_commit_that_may_not_be_on_disk_keeps_what_was_there(
    tmp_path: Path, documents: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make(tmp_path / "a", documents[:20])
    old = {each.name for each in index.path.iterdir()}

    def refuse(_: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("colbert_fast.storage.manifest.sync_folder", refuse)
        with pytest.raises(OSError, match="Input/output"):
            index.compact(retrain=True, progress=False)
    assert {each.name for each in index.path.iterdir()} > old
    assert index.refresh()
    index.delete([3])
    assert not {each.name for each in index.path.iterdir()} & (
        old - {"manifest.json", "writer.lock"}
    )


def test_a_model_of_another_index_does_not_come_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(WordModel):
        def fingerprint(self) -> str:
            return "other"

    first: Any = WordModel()
    given = make(tmp_path / "a", ["sky", "sea"], model=first)
    loaded = Index.open(tmp_path / "a")
    monkeypatch.setattr("colbert_fast.reader.model_of_index", lambda _: WordModel())
    assert len(loaded.search("sky")) == 2
    second: Any = Other()
    make(tmp_path / "a", ["red", "green", "blue"], model=second, overwrite=True)
    for index in (given, loaded):
        with pytest.raises(ValueError, match="built with other weights"):
            index.add(["stone"], progress=False)
    with pytest.raises(ValueError, match="built with other weights"):
        given.refresh()
    assert loaded.refresh()
    monkeypatch.setattr("colbert_fast.reader.model_of_index", lambda _: Other())
    assert len(loaded.search("sky")) == 3
    loaded.add(["stone"], progress=False)


def test_refreshing_in_two_threads_never_goes_back(
    tmp_path: Path, documents: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    index, writer = make(tmp_path / "a", documents[:20]), Index.open(tmp_path / "a")
    opening = threading.Event()
    opened = Snapshot.open

    def slow(*args: Any, **options: Any) -> Snapshot:
        snapshot = opened(*args, **options)
        if threading.current_thread().name == "slow":
            opening.set()
            time.sleep(0.3)
        return snapshot

    monkeypatch.setattr(Snapshot, "open", slow)
    for change in (index.refresh, index.close):
        writer.delete(writer.ids[:1])
        opening.clear()
        thread = threading.Thread(target=index.refresh, name="slow")
        thread.start()
        opening.wait()
        writer.delete(writer.ids[:1])
        change()
        thread.join()
        assert index.manifest.generation == writer.manifest.generation - (change == index.close)
    with pytest.raises(ValueError, match="is closed"):
        index.search(documents[0])


@pytest.mark.parametrize("pool_factor", [0, -3, 1.5])
def test_pool_factors_that_are_refused(
    tmp_path: Path, documents: list[np.ndarray], pool_factor: Any
) -> None:
    index = make(tmp_path / "a", documents[:20])
    with pytest.raises((ValueError, TypeError), match="pool_factor must be"):
        index.add(documents[20:], pool_factor=pool_factor, progress=False)


def test_ids_given_and_not_in_one_list(tmp_path: Path, documents: list[np.ndarray]) -> None:
    index = make(tmp_path / "a", documents[:10])
    index.upsert([(1, documents[10]), documents[11]], progress=False)
    index.add([(12, documents[12]), documents[13]], progress=False)
    assert sorted(index.ids) == [*range(10), 11, 12, 13]


def test_the_lock_of_a_folder_that_was_moved(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with writer_lock(tmp_path / "a"):
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "a").mkdir()
        with (
            writer_lock(tmp_path / "a"),
            pytest.raises(IndexBusyError),
            writer_lock(tmp_path / "b"),
        ):
            pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    code = """
        import os, signal, sys, time
        from pathlib import Path
        from colbert_fast.storage.lock import writer_lock
        with writer_lock(Path(sys.argv[1])):
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
        with writer_lock(Path(sys.argv[1])):
            print("free")
        os.kill(child, signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "free\n"


def test_one_text_is_no_list_of_ids(tmp_path: Path) -> None:
    model: Any = WordModel()
    index = make(tmp_path / "a", [("a", "sky"), ("b", "sea")], model=model)
    for use in (index.delete, index.get_embeddings):
        with pytest.raises(TypeError, match="ids: expected many ids, got one str"):
            use("ab")
    assert len(index) == 2


def test_damaged_marks(tmp_path: Path, documents: list[np.ndarray]) -> None:
    index = make(tmp_path / "a", documents[:20])
    index.delete([3])
    [path] = index.path.glob("deleted-*")
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x80
    path.write_bytes(data)
    with pytest.raises(IndexFormatError, match=r"deleted-.*\.npy: does not mark 1 documents"):
        Index.open(index.path)


def test_a_closed_index_does_not_write(tmp_path: Path, documents: list[np.ndarray]) -> None:
    index = make(tmp_path / "a", documents[:20])
    index.close()
    for write in (
        lambda: index.add(documents[:1]),
        lambda: index.delete([1]),
        index.compact,
        index.refresh,
    ):
        with pytest.raises(ValueError, match="is closed"):
            write()


class Histories(RuleBasedStateMachine):
    """Any history of changes leaves what a dict would."""

    folder: Path

    @initialize()
    def build(self) -> None:
        self.count = 0
        self.rng = np.random.default_rng(0)
        path = self.folder / f"{len(list(self.folder.iterdir()))}.cf"
        given = self.fresh(8)
        self.model = dict(enumerate(given))
        self.index = make(path, given, num_centroids=8, nbits=4)

    def fresh(self, count: int) -> list[np.ndarray]:
        return [
            unit(self.rng.standard_normal((self.rng.integers(1, 6), DIM))) for _ in range(count)
        ]

    @rule(count=st.integers(1, 5))
    def add(self, count: int) -> None:
        given = self.fresh(count)
        first = max(self.index._snapshot.manifest.next_id, 0)
        assert self.index.add(given, progress=False) == count
        self.model |= {first + i: each for i, each in enumerate(given)}

    @rule(keys=st.sets(st.integers(0, 20), min_size=1))
    def upsert(self, keys: set[int]) -> None:
        given = self.fresh(len(keys))
        self.index.upsert(given, ids=sorted(keys), progress=False)
        self.model |= dict(zip(sorted(keys), given, strict=True))

    @rule(keys=st.sets(st.integers(0, 30)))
    def delete(self, keys: set[int]) -> None:
        there = keys & self.model.keys()
        assert self.index.delete(there) == len(there)
        for key in there:
            del self.model[key]

    @rule(retrain=st.booleans())
    def compact(self, retrain: bool) -> None:
        self.index.compact(retrain=retrain, progress=False)

    @rule()
    def reopen(self) -> None:
        self.index.verify()
        self.index = Index.open(self.index.path)

    @invariant()
    def holds(self) -> None:
        assert set(self.index.ids) == set(self.model)
        assert len(self.index.ids) == len(self.index) == len(self.model)
        query = unit(np.ones((2, DIM)))
        hits = self.index.search(query, k=50)
        assert {hit.id for hit in hits} == set(self.model)
        snapshot = self.index._snapshot
        for key, position in snapshot.library.find(list(self.model)).items():
            assert len(snapshot.decode(position)) == len(self.model[key])


def test_histories(tmp_path: Path) -> None:
    machine = type("Machine", (Histories,), {"folder": tmp_path})
    machine.TestCase.settings = settings(max_examples=12, stateful_step_count=12, deadline=None)
    machine.TestCase().runTest()
