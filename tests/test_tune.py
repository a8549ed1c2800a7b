"""Tuning: curves that keep what they promise, stored so that no other index takes them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colbert_fast.errors import IndexFormatError
from colbert_fast.index import Index
from colbert_fast.search import tune as tuning_module
from colbert_fast.search.params import SearchParams
from colbert_fast.search.tune import Queries, calibrate, pseudo_queries
from colbert_fast.search.tuning import Curve, OperatingPoint, Tuning
from synthetic import clustered, files, make, unit

SIZE, DIM = 2000, 32


@pytest.fixture(scope="module")
def documents() -> list[np.ndarray]:
    return clustered(np.random.default_rng(2), SIZE, dim=DIM, topics=80, spread=0.8, longest=20)


@pytest.fixture(scope="module")
def built(documents: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tune") / "tuned.cf"
    with make(path, documents, num_centroids=128) as index:
        index.tune(0.95, k=(10, 40), num_queries=150, progress=False)
    return path


@pytest.fixture
def index(built: Path) -> Index:
    return Index.open(built)


@pytest.fixture
def fresh(documents: list[np.ndarray], tmp_path: Path) -> Index:
    """An index of its own, to be changed."""
    return make(tmp_path / "fresh.cf", documents[:200], num_centroids=32)


def point(nprobe: int, recall: float, microseconds: float) -> OperatingPoint:
    return OperatingPoint(nprobe, 64, recall, microseconds)


CURVES = (
    Curve(10, (point(1, 0.8, 10), point(2, 0.9, 20), point(4, 0.97, 40)), 900),
    Curve(50, (point(2, 0.7, 30), point(8, 0.96, 70)), 950),
)
TUNING = Tuning(
    CURVES, 0.95, num_documents=200, num_queries=9, seed=1, pseudo=True, threads=2, isa="avx2"
)


# ---- the curve


def test_a_curve_keeps_what_nothing_beats() -> None:
    measured = [
        point(1, 0.5, 10), point(2, 0.5, 11), point(3, 0.4, 12), point(4, 0.7, 13),
        point(5, 0.9, 99), point(6, 0.95, 101), point(7, 0.6, 13),
    ]  # fmt: skip
    curve = Curve.of(10, measured, 100)
    assert [each.nprobe for each in curve.points] == [1, 4, 5]


@pytest.mark.parametrize(
    ("k", "recall", "nprobe"),
    [
        (10, 0.1, 1), (10, 0.8, 1), (10, 0.81, 2), (1, 0.97, 4), (10, 0.98, None), (10, 1.0, None),
        (11, 0.7, 2), (50, 0.9, 8),
    ],
)  # fmt: skip
def test_the_cheapest_point_is_chosen(k: int, recall: float, nprobe: int | None) -> None:
    chosen = TUNING.choose(k, recall)
    assert (None if chosen is None else chosen.nprobe) == nprobe


def test_searches_take_the_chosen_point() -> None:
    params = SearchParams.resolve(10, recall=0.9, tuning=TUNING)
    assert params == SearchParams(10, 2, 64, None, "default", False)
    assert SearchParams.resolve(10, recall=np.float32(0.75), tuning=TUNING).nprobe == 1
    assert SearchParams.resolve(10, recall=0.98, tuning=TUNING).exhaustive
    assert SearchParams.resolve(7, recall=1, tuning=TUNING).exhaustive


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"recall": 0}, ValueError, "recall must be above 0 and at most 1, got 0"),
        ({"recall": 95}, ValueError, "recall must be above 0 and at most 1, got 95"),
        ({"recall": float("nan")}, ValueError, "recall must be above 0 and at most 1, got nan"),
        ({"recall": True}, TypeError, "recall must be a float, got bool"),
        ({"recall": "0.9"}, TypeError, "recall must be a float, got str"),
        ({"recall": 0.9, "nprobe": 2}, ValueError, "itself: leave out nprobe$"),
        ({"recall": 0.9, "ndocs": 99}, ValueError, "itself: leave out ndocs$"),
        ({"recall": 0.9, "exhaustive": True}, ValueError, "itself: leave out exhaustive$"),
        ({"recall": 0.9, "mode": "plaid"}, ValueError, "got mode='plaid'"),
        (
            {"recall": 0.9, "centroid_score_threshold": 0.4},
            ValueError,
            "leave out centroid_score_threshold$",
        ),
        ({"recall": 0.9, "k": 51}, ValueError, "k=51: the index is tuned for k up to 50; tune it"),
        ({"recall": 0.9, "tuning": None}, ValueError, r"call tune\(\) on it once"),
    ],
)
def test_what_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SearchParams.resolve(**{"tuning": TUNING, **options})


def test_a_tuning_is_a_table() -> None:
    lines = str(TUNING).splitlines()
    assert lines[0].split() == ["k", "nprobe", "ndocs", "recall", "us/query"]
    assert lines[3].split() == ["10", "4", "64", "0.9700", "40", "<-", "recall=0.95"]
    assert lines[4].split() == ["10", "exhaustive", "1.0000", "900"]
    assert lines[6].split()[-1] == "recall=0.95"
    assert lines[-1].startswith("recall: least to expect, by 9 pseudo-queries from the index; 2 th")
    unreached = dataclasses.replace(
        TUNING, curves=CURVES[:1], recall=0.99, pseudo=False, threads=1, isa="neon"
    )
    assert str(unreached).splitlines()[-2].endswith("900  <- recall=0.99")
    assert str(unreached).endswith("by 9 queries given; 1 thread, neon")


# ---- what it promises


@pytest.mark.parametrize("k", [10, 25, 40])
@pytest.mark.parametrize("recall", [0.7, 0.9, 0.95])
def test_other_queries_find_what_was_promised(
    index: Index, documents: list[np.ndarray], k: int, recall: float
) -> None:
    rng = np.random.default_rng(77)
    picked = [documents[i] for i in rng.choice(SIZE, 300) if len(documents[i]) >= 8][:100]
    queries = [unit(each[:8] + 0.15 * rng.standard_normal((8, DIM))) for each in picked]
    truth = index.search(queries, k, exhaustive=True)
    found = index.search(queries, k, recall=recall)
    shared = [
        len({hit.id for hit in a} & {hit.id for hit in b})
        for a, b in zip(truth, found, strict=True)
    ]
    # A hundred other queries: their mean is known to a standard error of one or two points.
    assert np.mean(shared) / k >= recall - 0.03


def test_curves_are_pareto_and_reach_their_target(index: Index) -> None:
    tuning = index.tuning
    assert tuning is not None
    assert [curve.k for curve in tuning.curves] == [10, 40]
    for curve in tuning.curves:
        for a, b in zip(curve.points, curve.points[1:], strict=False):
            assert a.recall < b.recall
            assert a.microseconds <= b.microseconds
        assert all(p.microseconds < curve.exhaustive_microseconds for p in curve.points)
        assert all(curve.k <= p.ndocs < SIZE for p in curve.points)
        assert all(0 <= p.recall < 1 for p in curve.points)


def test_recall_depends_on_the_seed_alone(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    # With times that rise with the work, the whole curve is the same again.
    monkeypatch.setattr(
        tuning_module,
        "_median_microseconds",
        lambda _retrieve, _vectors, params: (
            1e9 if params.exhaustive else params.nprobe + params.ndocs
        ),
    )
    first, again, other = (
        index.tune(0.9, k=10, num_queries=60, seed=seed, progress=False).curves
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_pseudo_queries(index: Index) -> None:
    made = pseudo_queries(index._snapshot, 40, seed=3)
    assert made.own.shape == (40, 3)
    for query in made.vectors:
        assert query.shape == (32, DIM)
        assert query.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(query, axis=1), 1, atol=1e-6)
        assert 1 < len(np.unique(query, axis=0)) <= 20


def test_own_documents_do_not_count() -> None:
    """The first of the truth is the query's own: finding nothing else is a recall of nothing."""
    size = 64

    def retrieve(vectors: Any, params: SearchParams) -> Any:
        best = np.arange(params.k) if params.exhaustive else np.arange(size)[::-1][: params.k]
        ids = np.tile(best, (len(vectors), 1))
        ids[:, 0] = 0
        return ids

    queries = Queries([np.ones((2, 8), np.float32)] * 5, np.zeros((5, 1), np.int64))
    options = {"ks": [10], "target": 0.9, "num_documents": size, "num_centroids": 1}
    (curve,) = calibrate(retrieve, queries, **options, progress=False)  # type: ignore[arg-type]
    assert all(each.recall == 0 for each in curve.points)


def test_given_queries(fresh: Index) -> None:
    queries = np.stack(pseudo_queries(fresh._snapshot, 12, seed=3).vectors)
    tuning = fresh.tune(0.9, k=5, queries=queries, progress=False)
    assert (tuning.num_queries, tuning.pseudo) == (12, False)
    assert fresh.search(queries, 5, recall=1.0) == fresh.search(queries, 5, exhaustive=True)


def test_the_last_tuning_counts(fresh: Index) -> None:
    query = pseudo_queries(fresh._snapshot, 1, seed=3).vectors[0]
    fresh.tune(0.9, k=5, num_queries=12, progress=False)
    assert len(fresh.search(query, 5, recall=0.8)) == 5
    fresh.tune(0.9, k=20, num_queries=12, progress=False)
    assert len(fresh.search(query, 20, recall=0.8)) == 20


def test_fewer_documents_than_hits(tmp_path: Path) -> None:
    rows = unit(np.random.default_rng(0).standard_normal((3, 4, 16)))
    with make(tmp_path / "few.cf", list(rows), num_centroids=2) as index:
        tuning = index.tune(k=(2, 10), num_queries=3, progress=False)
        assert [curve.points for curve in tuning.curves] == [(), ()]
        assert len(index.search(rows[0], 10, recall=0.5)) == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"recall": 1.5}, ValueError, "recall must be above 0 and at most 1, got 1.5"),
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": (10, 2.5)}, TypeError, "k must be an int, got float"),
        ({"k": ()}, ValueError, "k: expected an int or several, got none"),
        ({"num_queries": 0}, ValueError, "num_queries must be at least 1, got 0"),
        ({"queries": []}, ValueError, "queries: there are none"),
        ({"queries": np.ones((2, 3, 8))}, ValueError, "query 0: dim is 8, the index has dim 32"),
        ({"queries": "sky"}, ValueError, "this index was built from embeddings"),
    ],
)
def test_tuning_that_is_refused(
    fresh: Index, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fresh.tune(progress=False, **options)
    assert fresh.tuning is None


def test_an_empty_index_is_not_tuned(fresh: Index) -> None:
    fresh.delete(fresh.ids)
    for queries in (None, [np.ones((2, DIM), np.float32)]):
        with pytest.raises(ValueError, match="the index is empty; there is nothing to measure"):
            fresh.tune(queries=queries, progress=False)


# ---- the file


def test_the_file_comes_back_as_it_was(fresh: Index) -> None:
    before = files(fresh.path)
    with pytest.raises(ValueError, match=r"call tune\(\) on it once"):
        fresh.search(np.ones((2, DIM)), recall=0.9)
    tuning = fresh.tune(0.9, k=10, num_queries=8, progress=False)
    assert fresh.tuning == tuning
    assert Index.open(fresh.path).tuning == tuning
    assert {name: data for name, data in files(fresh.path).items() if name in before} == before
    assert {path.name for path in fresh.path.iterdir()} >= {"tuning.json", "manifest.json"}
    assert not list(fresh.path.glob("tuning.json.*"))
    fresh.verify()


def test_a_failed_write_leaves_the_old_file(fresh: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = fresh.tune(0.9, k=10, num_queries=8, progress=False)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        fresh.tune(0.9, k=5, num_queries=8, progress=False)
    assert Index.open(fresh.path).tuning == tuning
    assert not list(fresh.path.glob("tuning.json.*"))


def change(path: Path, **values: Any) -> None:
    contents = json.loads(path.read_text())
    path.write_text(json.dumps({**contents, **values}))


DAMAGE: dict[str, Any] = {
    "a list": ([], '"format" is not "colbert_fast tuning"'),
    "foreign": ({"format": "other"}, '"format" is not "colbert_fast tuning"'),
    "newer": ({"version": 3}, "version 3, this library reads 2"),
    "no version": ({"version": None}, "version None, this library reads 2"),
    "another index": ({"index": "00000000"}, "was measured on another index"),
    "no curves": ({"curves": []}, '"curves" must be there'),
    "curves of another type": ({"curves": 3}, "damaged"),
    "a curve without points": ({"curves": [{"k": 1}]}, "damaged"),
    "a short point": (
        {"curves": [{"k": 1, "points": [[1, 2]], "exhaustive_microseconds": 1}]},
        "damaged",
    ),
    "nprobe 0": (
        {"curves": [{"k": 1, "points": [[0, 9, 0.5, 1.0]], "exhaustive_microseconds": 1}]},
        '"nprobe" must be a positive integer, got 0',
    ),
    "recall as text": (
        {"curves": [{"k": 1, "points": [[1, 9, "1", 1.0]], "exhaustive_microseconds": 1}]},
        "\"recall\" must be a number of at least 0, got '1'",
    ),
    "an unknown key": ({"speed": 1}, "damaged"),
    "threads": ({"threads": "2"}, '"threads" must be a positive integer'),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_named(fresh: Index, name: str) -> None:
    values, message = DAMAGE[name]
    TUNING.write(fresh.path, fresh._snapshot.manifest)
    path = fresh.path / "tuning.json"
    if isinstance(values, dict):
        change(path, **values)
    else:
        path.write_text(json.dumps(values))
    for use in (
        lambda: fresh.search(np.ones((2, DIM)), recall=0.9),
        fresh.verify,
    ):
        with pytest.raises(IndexFormatError) as caught:
            use()
        assert "tuning.json" in str(caught.value)
        assert message in str(caught.value)
        assert "call tune() again" in str(caught.value)


@pytest.mark.parametrize("contents", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json(fresh: Index, contents: bytes) -> None:
    (fresh.path / "tuning.json").write_bytes(contents)
    with pytest.raises(IndexFormatError, match=r"tuning\.json: .*call tune\(\) again"):
        _ = fresh.tuning
    assert len(fresh.search(np.ones((2, DIM)), 3)) == 3
    fresh.tune(0.9, k=10, num_queries=8, progress=False)
    fresh.verify()


def test_a_rebuilt_index_does_not_take_an_old_curve(
    fresh: Index, documents: list[np.ndarray]
) -> None:
    fresh.tune(0.9, k=10, num_queries=8, progress=False)
    old = (fresh.path / "tuning.json").read_bytes()
    rebuilt = make(fresh.path, documents[:199], num_centroids=32, overwrite=True)
    assert rebuilt.tuning is None
    (fresh.path / "tuning.json").write_bytes(old)
    with (
        Index.open(fresh.path) as opened,
        pytest.raises(IndexFormatError, match="was measured on another index"),
    ):
        opened.search(np.ones((2, DIM)), recall=0.9)


def test_an_index_that_has_grown(fresh: Index, documents: list[np.ndarray]) -> None:
    fresh.tune(0.9, k=10, num_queries=8, progress=False)
    query = np.ones((2, DIM), np.float32)
    fresh.add(documents[200:300], progress=False)
    assert len(fresh.search(query, 3, recall=0.5)) == 3
    fresh.upsert(documents * 2, ids=[*range(2 * len(documents))], progress=False)
    with pytest.raises(ValueError, match=r"tuned with 200 documents and has .* now: call tune"):
        fresh.search(query, 3, recall=0.5)
    fresh.verify()


def test_a_reader_of_an_older_encoding_does_not_write(fresh: Index) -> None:
    with Index.open(fresh.path) as stale:
        fresh.compact(retrain=True, progress=False)
        tuning = fresh.tune(0.9, k=10, num_queries=8, progress=False)
        with pytest.raises(ValueError, match=r"call refresh\(\), then tune\(\) again"):
            stale.tune(0.9, k=10, num_queries=8, progress=False)
        assert Index.open(fresh.path).tuning == tuning
        assert stale.refresh()
        stale.tune(0.9, k=10, num_queries=8, progress=False)


def test_a_failed_commit_keeps_the_curve(fresh: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = fresh.tune(0.9, k=10, num_queries=8, progress=False)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("colbert_fast.storage.transactions.Manifest.write", fail)
    with pytest.raises(OSError, match="No space left"):
        fresh.compact(retrain=True, progress=False)
    assert fresh.tuning == tuning


def test_encoding_anew_drops_the_curve(fresh: Index) -> None:
    fresh.tune(0.9, k=10, num_queries=8, progress=False)
    fresh.compact(retrain=True, progress=False)
    assert fresh.tuning is None
