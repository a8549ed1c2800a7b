"""Searching: the right documents with the right scores, and clear words for what cannot be."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colbert_fast import reader
from colbert_fast.errors import UnknownDocumentError
from colbert_fast.index import Index
from colbert_fast.search import hybrid, pipeline
from colbert_fast.search import params as defaults
from colbert_fast.search.params import SearchParams
from colbert_fast.search.results import Hit
from colbert_fast.storage.documents import DocumentStore
from fakes import WordModel
from support import use_threads
from synthetic import brute_force, clustered, unit

DIM = 64
TEXTS = ["blue sky", "red apple", "green tree", "blue sea", "red leaf and red stone", "rain"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("search")
    documents = clustered(np.random.default_rng(5), 1500, dim=DIM)
    for name, options in (
        ("bits1", {"nbits": 1}),
        ("bits2", {}),
        ("plaid2", {"codec": "plaid"}),
        ("bits4", {"nbits": 4}),
        ("float16", {"codec": "float16"}),
    ):
        given: Any = options
        Index.build(
            path / name,
            documents,
            ids=[f"d{i}" for i in range(1500)],
            num_centroids=64,
            kmeans_iterations=2,
            progress=False,
            **given,
        )
    return path


@pytest.fixture(scope="module", params=["bits1", "bits2", "plaid2", "bits4", "float16"])
def index(request: pytest.FixtureRequest, folder: Path) -> Index:
    return Index.open(folder / request.param)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Index:
    """One index, for what has nothing to do with the codec."""
    return Index.open(folder / "bits2")


@pytest.fixture
def queries(rng: np.random.Generator) -> np.ndarray:
    documents = clustered(np.random.default_rng(5), 1500, dim=DIM)
    picked = [documents[i] for i in rng.choice(1500, 200) if len(documents[i]) >= 6][:20]
    return np.stack([unit(each[:6] + 0.05 * rng.standard_normal((6, DIM))) for each in picked])


def stored(index: Index) -> list[np.ndarray]:
    arrays = index._snapshot.segments[0]
    columns = {name: rows[:] for name, rows in arrays.columns.items()}
    vectors = index._snapshot.codec.decode(columns)
    return np.split(vectors, np.cumsum(arrays.doclens)[:-1])


def numbers(hits: list[Hit]) -> list[int]:
    return [int(str(hit.id)[1:]) for hit in hits]


# ---- against brute force


def test_exhaustive_search_is_brute_force(index: Index, queries: np.ndarray) -> None:
    documents = stored(index)
    for query, hits in zip(queries, index.search(queries, k=20, exhaustive=True), strict=True):
        truth = brute_force(query, documents)
        best = np.sort(truth)[::-1][:20]
        scores = np.array([hit.score for hit in hits])
        np.testing.assert_allclose(scores, best, atol=1e-5)
        np.testing.assert_allclose(scores, truth[numbers(hits)], atol=1e-5)


def test_exhaustive_search_returns_everything(index: Index, queries: np.ndarray) -> None:
    hits = index.search(queries[0], k=1500, exhaustive=True)
    assert sorted(numbers(hits)) == list(range(1500))
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("mode", "ndocs", "least"),
    [("default", None, 1.0), ("default", 250, 0.97), ("plaid", None, 0.9)],
)
def test_recall(
    index: Index, queries: np.ndarray, mode: Any, ndocs: int | None, least: float
) -> None:
    documents = stored(index)
    truth = index.search(queries, k=10, exhaustive=True)
    found = index.search(queries, k=100, mode=mode, ndocs=ndocs)
    held = 0
    for query, right, hits in zip(queries, truth, found, strict=True):
        held += len({*numbers(right)} & {*numbers(hits[:10])})
        exact = brute_force(query, documents)[numbers(hits)]
        np.testing.assert_allclose([hit.score for hit in hits], exact, atol=1e-5)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert held / (10 * len(queries)) >= least


@pytest.mark.parametrize("mode", ["default", "plaid"])
def test_probing_everything_is_exhaustive(index: Index, queries: np.ndarray, mode: Any) -> None:
    found = index.search(
        queries,
        k=10,
        nprobe=index.info()["centroids"],
        ndocs=6000,
        centroid_score_threshold=-10.0 if mode == "plaid" else None,
        mode=mode,
    )
    assert found == index.search(queries, k=10, exhaustive=True)


@pytest.mark.parametrize("ndocs", [1024, 200], ids=["scanned", "filtered"])
def test_threads_and_batches_do_not_show(plain: Index, queries: np.ndarray, ndocs: int) -> None:
    whole = plain.search(queries, k=10, ndocs=ndocs)
    for threads in (1, 2, 5):
        with use_threads(threads):
            assert plain.search(queries, k=10, ndocs=ndocs) == whole
            assert [plain.search(query, k=10, ndocs=ndocs) for query in queries] == whole


def test_blocks_of_queries_do_not_show(
    plain: Index, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = plain.search(queries, k=10)
    monkeypatch.setattr(pipeline, "_BLOCK", 7)
    assert plain.search(queries, k=10) == whole


# ---- forms


def test_one_query_or_many(plain: Index, queries: np.ndarray) -> None:
    many = plain.search(queries, k=3)
    assert len(many) == 20
    assert plain.search(queries[0], k=3) == many[0]
    assert plain.search(queries[0], 3) == many[0]
    assert plain.search(list(queries), k=3) == many
    assert plain.search(tuple(queries), k=3) == many
    assert plain.search(queries.astype(np.float64), k=3) == many
    assert plain.search(np.asfortranarray(queries[0]), k=3) == many[0]
    ragged = [queries[0], queries[1, :2]]
    assert plain.search(ragged, k=3) == [many[0], plain.search(queries[1, :2], k=3)]
    assert plain.search([]) == []
    assert plain.search(queries[:0]) == []


def test_queries_as_tensors(plain: Index, queries: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    many = plain.search(queries, k=3)
    assert plain.search(torch.from_numpy(queries), k=3) == many
    assert plain.search([torch.from_numpy(each) for each in queries], k=3) == many
    assert plain.search(torch.from_numpy(queries[0]).requires_grad_(), k=3) == many[0]


@pytest.mark.parametrize("mode", ["default", "plaid"])
@pytest.mark.parametrize("k", [1499, 1500, 1501, 10**12, 10**30])
def test_more_hits_than_documents(plain: Index, queries: np.ndarray, mode: Any, k: int) -> None:
    for hits in plain.search(queries[:2], k=k, mode=mode):
        assert len(set(numbers(hits))) == min(k, 1500)


@pytest.mark.parametrize("mode", ["default", "plaid"])
def test_probes_too_narrow_for_k_are_widened(plain: Index, queries: np.ndarray, mode: Any) -> None:
    for hits in plain.search(queries[:3, :1], k=1200, nprobe=1, ndocs=1200, mode=mode):
        assert len(hits) == 1200


def test_widening_ends_in_an_exhaustive_search(
    plain: Index, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    search = pipeline.Searcher.search

    def watch(searcher: Any, rows: Any, params: SearchParams, **options: Any) -> Any:
        asked.append((params.nprobe, params.exhaustive))
        return search(searcher, rows, params, **options)

    monkeypatch.setattr(pipeline.Searcher, "search", watch)
    wanted = {"k": 990, "ndocs": 990}  # few enough not to be scanned at once
    hits = plain.search(queries[0][:1], nprobe=2, **wanted)
    assert asked == [(2, False), (8, False), (32, True)]
    assert hits == plain.search(queries[0][:1], exhaustive=True, **wanted)


# ---- subset


@pytest.mark.parametrize("mode", ["default", "plaid"])
@pytest.mark.parametrize("size", [1, 3, 50, 1400])
def test_subset(
    index: Index, queries: np.ndarray, rng: np.random.Generator, mode: Any, size: int
) -> None:
    chosen = rng.choice(1500, size, replace=False)
    ids = [f"d{i}" for i in chosen]
    mask = np.isin(np.arange(1500), chosen)
    options: Any = {"k": 5, "ndocs": 250, "mode": mode}
    found = index.search(queries, subset=ids, **options)
    assert found == index.search(queries, subset=mask, **options)
    assert found == index.search(queries, subset=iter(ids), **options)
    truth = index.search(queries, k=5, subset=mask, exhaustive=True)
    for hits, right in zip(found, truth, strict=True):
        assert len(hits) == len(right) == min(5, size)
        assert {*numbers(hits)} <= {*chosen}
        if size <= 50:
            assert hits[0] == right[0]
            if mode == "default":  # few enough to be scored one and all
                assert hits == right


def test_subset_of_nothing(plain: Index, queries: np.ndarray) -> None:
    assert plain.search(queries[0], subset=[]) == []
    assert plain.search(queries[:2], subset=np.zeros(1500, bool)) == [[], []]


@pytest.mark.parametrize(
    ("subset", "error", "message"),
    [
        (["d1", "x", 7], UnknownDocumentError, "not in the index: 'x', 7"),
        ("d1", TypeError, "subset: expected ids or a boolean mask, got one str"),
        (3, TypeError, "subset: expected ids or a boolean mask, got one int"),
        (np.ones(3, bool), ValueError, r"subset: a mask must have shape \(1500,\), got \(3,\)"),
        ([True, False], TypeError, r"subset\[0\]: an id must be a str or an int, got bool"),
    ],
)
def test_subsets_that_are_refused(
    plain: Index, queries: np.ndarray, subset: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plain.search(queries[0], subset=subset)


# ---- bad queries and parameters


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        (np.ones((3, 32)), ValueError, "query 0: dim is 32, the index has dim 64"),
        ([np.ones((3, 64)), np.ones((3, 65))], ValueError, "query 1: dim is 65, the index has"),
        (np.full((3, 64), np.nan), ValueError, "query 0: holds NaN or infinite values"),
        (np.full((3, 64), np.inf), ValueError, "query 0: holds NaN or infinite values"),
        (np.ones((0, 64)), ValueError, r"at least one token, got \(0, 64\)"),
        (np.ones((3, 64), np.int64), TypeError, "query 0: expected floats, got int64"),
        (np.ones(64), ValueError, r"query: expected shape .* got \(64,\)"),
        ([np.ones((3, 64)), "sky"], TypeError, r"query\[1\]: expected an array, or .* got str"),
        (["sky", np.ones((3, 64))], TypeError, r"query\[1\]: expected a text .* got ndarray"),
        (["sky", None], TypeError, r"query\[1\]: expected a text like the first, got NoneType"),
        ([[0.1, 0.2]], TypeError, r"query\[0\]: expected an array, or .* got list"),
        (7, TypeError, "query: expected a text, .* got int"),
        (None, TypeError, "query: expected a text, .* got NoneType"),
    ],
)
def test_queries_that_are_refused(
    plain: Index, query: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plain.search(query)


def test_values_too_large_for_float32(plain: Index) -> None:
    with pytest.raises(ValueError, match="query 0: holds NaN or infinite values"):
        plain.search(np.full((3, 64), 1e300))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": 2.5}, TypeError, "k must be an int, got float"),
        ({"k": True}, TypeError, "k must be an int, got bool"),
        ({"nprobe": 0}, ValueError, "nprobe must be at least 1, got 0"),
        ({"ndocs": 5, "k": 6}, ValueError, "ndocs must be at least k=6, got 5"),
        ({"mode": "fast"}, ValueError, "mode must be one of .* got 'fast'"),
        ({"centroid_score_threshold": float("nan")}, ValueError, "threshold is NaN"),
        (
            {"centroid_score_threshold": 0.5},
            ValueError,
            r"threshold=0\.5 means nothing in mode 'default'; leave it out, or pass mode=\"plaid\"",
        ),
    ],
)
def test_parameters_that_are_refused(
    plain: Index,
    queries: np.ndarray,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        plain.search(queries[0], **options)


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, (1, 256, 0.5)),
        (10, (1, 256, 0.5)),
        (11, (2, 1024, 0.45)),
        (100, (2, 1024, 0.45)),
        (101, (4, 4096, 0.4)),
        (2000, (4, 8000, 0.4)),
    ],
)
def test_defaults_of_plaid(k: int, expected: tuple[int, int, float]) -> None:
    params = SearchParams.resolve(k, mode="plaid")
    assert (params.nprobe, params.ndocs, params.centroid_score_threshold) == expected


@pytest.mark.parametrize(
    ("k", "size", "nprobe", "ndocs"),
    [
        (10, 0, 4, 1024),
        (100, 25_000, 4, 1024),
        (101, 25_000, 8, 1024),
        (1000, 1_000, 8, 8000),
        (10, 50_000, 5, 1261),
        (10, 250_000, 8, 2043),
        (1000, 2_500_000, 32, 31849),
    ],
)
def test_defaults(k: int, size: int, nprobe: int, ndocs: int) -> None:
    params = SearchParams.resolve(k, num_documents=size)
    assert params == SearchParams(k, nprobe, ndocs, None, "default", False)
    fused = SearchParams.resolve(k, num_documents=size, mode="hybrid")
    assert (fused.nprobe, fused.ndocs) == (nprobe, ndocs)
    for mode in ("plaid", "rerank"):
        grown = SearchParams.resolve(k, num_documents=size, mode=mode)
        assert grown == SearchParams.resolve(k, mode=mode)


def test_defaults_are_those_of_the_collection_s_size(
    plain: Index, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def watch(snapshot: Any, rows: Any, params: SearchParams, **options: Any) -> Any:
        asked[params.mode] = params.nprobe, params.ndocs
        return hybrid.find(snapshot, rows, params, **options)

    monkeypatch.setattr(reader, "find", watch)
    monkeypatch.setattr(defaults, "_GROWS_FROM", 150)
    for mode in ("default", "plaid"):
        plain.search(queries[0], mode=mode)
    assert asked == {"default": (8, 2043), "plaid": (1, 256)}


def test_given_parameters_replace_the_defaults() -> None:
    params = SearchParams.resolve(
        np.int64(5), nprobe=7, ndocs=99, centroid_score_threshold=0, mode="plaid", exhaustive=True
    )
    assert params == SearchParams(5, 7, 99, 0.0, "plaid", True)


# ---- texts


@pytest.fixture
def texts(tmp_path: Path) -> Index:
    model: Any = WordModel()
    rows = [{"id": i, "text": text, "length": len(text)} for i, text in enumerate(TEXTS)]
    return Index.build(tmp_path / "texts", rows, model=model, nbits=8, progress=False)


def test_text_queries(texts: Index) -> None:
    hits = texts.search("blue sky", k=2)
    assert [hit.id for hit in hits] == [0, 3]
    query = texts.model.encode_queries(["blue sky"])[0]
    rows = next(iter(texts.model.encode_documents(["blue sky"])))
    assert hits[0].score == pytest.approx(brute_force(query, [rows])[0], abs=0.02)
    assert (hits[0].text, hits[0].metadata) == ("blue sky", {"length": 8})
    assert texts.search(["blue sky", "rain"], k=1) == [hits[:1], texts.search("rain", k=1)]
    assert texts.search(query, k=2) == hits


def test_a_hit_explains_itself(texts: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    from colbert_fast.search import explain

    monkeypatch.setattr(explain, "explain", lambda *arguments: arguments)
    hit = texts.search("red", k=1)[0]
    assert hit.explain() == (texts.model, "red", hit.text)


def test_hits_are_values(texts: Index) -> None:
    hit = texts.search("red", k=1)[0]
    assert hash(hit) == hash(texts.search("red", k=1)[0])
    assert set(dataclasses.asdict(hit)) == {"id", "score", "text", "metadata"}
    assert repr(hit).count("=") == 4
    for same in (pickle.loads(pickle.dumps(hit)), copy.copy(hit)):
        assert same == hit
        with pytest.raises(ValueError, match="or the hit is a copy or from a pickle; explain what"):
            same.explain()
    assert b"WordModel" not in pickle.dumps(hit)


def test_texts_are_read_when_looked_at(texts: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    fetch = DocumentStore.fetch
    monkeypatch.setattr(
        DocumentStore, "fetch", lambda *given: asked.append(given[1]) or fetch(*given)
    )
    hits = texts.search("red leaf", k=3)
    assert hits[0].id == 4
    assert asked == []
    assert [hit.text for hit in hits] == [TEXTS[int(hit.id)] for hit in hits]
    assert hits[0].metadata == {"length": len(TEXTS[4])}
    assert [sorted(each) for each in asked] == [sorted(int(hit.id) for hit in hits)]
    with pytest.raises(AttributeError, match="'Hit' object has no attribute 'title'"):
        _ = hits[0].title  # type: ignore[attr-defined]


def test_hits_outlive_their_index(texts: Index) -> None:
    hits = texts.search(["red leaf", "rain"], k=2)
    texts.close()
    assert [hit.text for hit in hits[0]] == [TEXTS[int(hit.id)] for hit in hits[0]]
    assert hits[1][0] == Hit(5, hits[1][0].score, "rain", {"length": 4})


def test_values_whose_squares_overflow(plain: Index, queries: np.ndarray) -> None:
    with pytest.raises(ValueError, match="`queries` must be finite and at most 1e15"):
        plain.search(np.full((3, 64), 1e30, np.float32))
    scaled = plain.search(queries[0] * np.float32(1e15), k=3)
    assert [hit.id for hit in scaled] == [hit.id for hit in plain.search(queries[0], k=3)]


def test_hits_that_cannot_explain_themselves(texts: Index, plain: Index) -> None:
    hit = texts.search(np.eye(32, dtype=np.float32)[:2], k=1)[0]
    with pytest.raises(ValueError, match="the query was given as embeddings, or the hit is a copy"):
        hit.explain()
    hit = plain.search(np.eye(64, dtype=np.float32)[:2], k=1)[0]
    assert hit.text is None
    assert hit.metadata == {}
    with pytest.raises(ValueError, match="has no text: the index was built from embeddings"):
        hit.explain()
