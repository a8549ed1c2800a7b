"""The query pipeline in C++ against its specification, ``reference.search``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from colbert_fast import _core
from colbert_fast.compress.codec import ResidualCodec
from colbert_fast.kernels import ops, reference
from colbert_fast.search.params import SearchParams
from colbert_fast.search.pipeline import Part, Searcher
from colbert_fast.storage.codes import code_bits
from support import (
    NBITS,
    Collection,
    any_threads,
    every_isa,
    make_collection,
    make_trellis_collection,
    same_bits,
    unit_vectors,
    use_isa,
    use_threads,
)

Arguments = dict[str, Any]
SCORE_TOLERANCE = 1e-5
DOCLENS = np.random.default_rng(3).integers(0, 20, 300).astype(np.int32)
SIZES: Arguments = {"nq": 9, "dim": 32, "num_centroids": 40, "doclens": DOCLENS}
DATA = make_collection(np.random.default_rng(5), nbits=2, **SIZES)
TRELLIS = make_trellis_collection(np.random.default_rng(5), nbits=2, **SIZES)
QUERIES = [DATA.query, -DATA.query[:1], DATA.embeddings[40:57].copy()]


def arrays_of(data: Collection, codec: str) -> Arguments:
    """The arguments of ``reference.search``, which ``Searcher`` and ``Part`` share."""
    common = {"centroids": data.centroids, "codes": data.codes, "doclens": data.doclens}
    if codec == "float16":
        return common | {"embeddings": data.embeddings.astype(np.float16)}
    rows = {"residuals": data.residuals, "weights": data.weights, "scales": data.scales}
    return common | rows


def make_searcher(data: Collection, codec: str) -> Searcher:
    arrays = arrays_of(data, codec)
    if codec != "float16":
        arrays["inverse_norms"] = data.inverse_norms
    return searcher_of(arrays, ops.build_lists(data.codes, data.doclens, len(data.centroids)))


def searcher_of(arrays: Arguments, lists: ops.InvertedLists) -> Searcher:
    """Over one part."""
    shared = {"centroids": arrays["centroids"], "weights": arrays.get("weights")}
    columns = {name: arrays[name] for name in arrays.keys() - shared.keys()}
    columns["codes"] = ops.pack_codes(columns["codes"], code_bits(len(lists.counts)))
    part = Part(**columns, lists=lists)
    return Searcher(**shared, parts=[part])


COLLECTIONS = {"default": TRELLIS, "plaid": DATA, "float16": DATA}
SEARCHERS = {codec: make_searcher(data, codec) for codec, data in COLLECTIONS.items()}


def assert_same_hits(ids: np.ndarray, scores: np.ndarray, truth: tuple[Any, Any]) -> None:
    """Ids may be in another order only where the true scores are equal up to rounding."""
    count = len(truth[0])
    assert (ids[count:] == -1).all()
    assert (scores[count:] == -np.inf).all()
    np.testing.assert_allclose(scores[:count], truth[1], rtol=0, atol=SCORE_TOLERANCE)
    for position in np.flatnonzero(ids[:count] != truth[0]):
        gaps = np.abs(truth[1] - truth[1][position])
        assert np.sort(gaps)[1] <= SCORE_TOLERANCE, f"hit {position}: another document"


@every_isa
@pytest.mark.parametrize("codec", SEARCHERS)
@pytest.mark.parametrize("k", [1, 10, 300])
def test_exhaustive_search(codec: str, k: int) -> None:
    params = SearchParams.resolve(k, exhaustive=True)
    found = SEARCHERS[codec].search(QUERIES, params)
    for query, *hits in zip(QUERIES, *found, strict=True):
        assert_same_hits(
            *hits,
            reference.search(query, exhaustive=True, k=k, **arrays_of(COLLECTIONS[codec], codec)),
        )


PLAID: list[Arguments] = [
    {"k": 5, "nprobe": 1, "ndocs": 20, "centroid_score_threshold": 0.3},
    {"k": 10, "nprobe": 2, "ndocs": 64, "centroid_score_threshold": 0.45},
    {"k": 10, "nprobe": 2, "ndocs": 12, "centroid_score_threshold": 2.0},
    {"k": 3, "nprobe": 40, "ndocs": 100, "centroid_score_threshold": -1.0},
]


@every_isa
@pytest.mark.parametrize("codec", SEARCHERS)
@pytest.mark.parametrize("options", PLAID)
@pytest.mark.parametrize("with_subset", [False, True])
def test_plaid_stages(codec: str, options: Arguments, with_subset: bool) -> None:
    subset = np.arange(len(DOCLENS)) % 3 > 0 if with_subset else None
    params = SearchParams.resolve(mode="plaid", **options)
    found = SEARCHERS[codec].search(QUERIES, params, subset=subset)
    for query, *hits in zip(QUERIES, *found, strict=True):
        truth = reference.search(
            query, subset=subset, **options, **arrays_of(COLLECTIONS[codec], codec)
        )
        assert_same_hits(*hits, truth)


# ---- mode "default"


def every_codec() -> dict[str, Searcher]:
    """Searchers of the same vectors in every codec."""
    searchers = {"float16": SEARCHERS["float16"]}
    for nbits in NBITS:
        rng = np.random.default_rng([5, nbits])
        trellis = make_trellis_collection(rng, nbits=nbits, **SIZES)
        if nbits >= 4:  # as the codec has it: the norms are near 1
            trellis = trellis._replace(inverse_norms=None)
        searchers[f"default{nbits}"] = make_searcher(trellis, "default")
        searchers[f"plaid{nbits}"] = make_searcher(fitted(trellis, nbits), "plaid")
    return searchers


def fitted(data: Collection, nbits: int) -> Collection:
    """The same vectors at PLAID's levels; the norms of wider ones would not fit their byte."""
    codec = ResidualCodec.fit(data.centroids, data.embeddings, nbits=nbits, name="plaid")
    columns = codec.encode(data.embeddings)
    return data._replace(
        centroids=codec.centroids, weights=codec.weights, scales=None, **dict(columns)
    )


EVERY_CODEC = every_codec()
WITH_ZERO = np.concatenate([DATA.query[:3], np.zeros((1, 32), np.float32), DATA.query[3:]])
HARD_QUERIES = [
    *QUERIES,
    DATA.embeddings[7:8].copy(),
    DATA.embeddings[100:133].copy(),
    DATA.embeddings[200:270].copy(),
    WITH_ZERO,
    np.zeros((2, 32), np.float32),
    DATA.query * np.float32(40),
    DATA.query * np.linspace(0.001, 3, 9, dtype=np.float32)[:, None],
]
"""1, 17, 33 and 70 tokens; rows of zeros; lengths that are not 1."""

SCANNED = {"ndocs": 200}  # the 300 documents are not more than 1.5 times as many
FILTERED = {"ndocs": 64, "nprobe": 6}
SCREENED = {"ndocs": 12, "nprobe": 12}
RANKED = {"ndocs": 180, "nprobe": 24}  # so many are ranked by their likely tokens
WAYS = {"scanned": SCANNED, "filtered": FILTERED, "screened": SCREENED, "ranked": RANKED}


@every_isa
@pytest.mark.parametrize("codec", EVERY_CODEC)
@pytest.mark.parametrize("k", [1, 10, 150])
def test_small_collections_are_searched_exactly(codec: str, k: int) -> None:
    searcher = EVERY_CODEC[codec]
    found = searcher.search(HARD_QUERIES, SearchParams.resolve(k, **SCANNED))
    exact = searcher.search(HARD_QUERIES, SearchParams.resolve(k, exhaustive=True))
    assert same_bits(found, exact)


@every_isa
@pytest.mark.parametrize("codec", EVERY_CODEC)
@pytest.mark.parametrize("options", [FILTERED, RANKED], ids=["filtered", "ranked"])
def test_scores_are_exact_and_most_hits_are_found(codec: str, options: Arguments) -> None:
    searcher = EVERY_CODEC[codec]
    everything = SearchParams.resolve(len(DOCLENS), exhaustive=True)
    all_ids, all_scores = searcher.search(HARD_QUERIES, everything)
    ids, scores = searcher.search(HARD_QUERIES, SearchParams.resolve(10, **options))
    for row in range(len(HARD_QUERIES)):
        exact = dict(zip(all_ids[row].tolist(), all_scores[row].tolist(), strict=True))
        hits = ids[row].tolist()
        assert len(set(hits)) == 10
        assert scores[row].tolist() == [exact[document] for document in hits]
        assert hits == sorted(hits, key=lambda document: (-exact[document], document))
    found = [len(set(a) & set(b[:10])) for a, b in zip(ids, all_ids, strict=True)]
    assert np.mean(found) >= 8


def make_near_ties(nbits: int) -> Searcher:
    """Documents whose tokens are nearly the same ones again and again."""
    rng = np.random.default_rng([7, nbits])
    doclens = np.full(150, 40, np.int32)
    words = unit_vectors(rng, 24, 64)
    noise = rng.standard_normal((150 * 40, 64)) * rng.choice([1e-3, 1e-2, 0.1], (150 * 40, 1))
    embeddings = words[rng.integers(24, size=150 * 40)] + noise
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    centroids = unit_vectors(rng, 24, 64) * np.float32(0.6) + words
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    codec = ResidualCodec.fit(centroids, embeddings.astype(np.float32), nbits=nbits, name="default")
    columns = dict(codec.encode(embeddings.astype(np.float32)))
    lists = ops.build_lists(columns["codes"], doclens, 24)
    shared = {"centroids": codec.centroids, "weights": codec.weights, "doclens": doclens}
    return searcher_of(columns | shared, lists)


@every_isa
@pytest.mark.parametrize("nbits", NBITS)
def test_near_ties_are_scored_exactly(nbits: int) -> None:
    searcher = make_near_ties(nbits)
    rng = np.random.default_rng(9)
    queries = [unit_vectors(rng, n, 64) for n in (1, 9, 32)]
    for ndocs in (150, 90):  # all in one, or the best by their centroids first
        params = SearchParams.resolve(60, ndocs=ndocs, nprobe=24)
        found = searcher.search(queries, params)
        for row, query in enumerate(queries):
            ids = found[0][row]
            given = np.isin(np.arange(150), ids)
            exact = searcher.search(
                [query], SearchParams.resolve(60, exhaustive=True), subset=given
            )
            assert same_bits((ids, found[1][row]), (exact[0][0], exact[1][0]))


def test_the_error_of_norms_that_are_not_stored_is_measured() -> None:
    """Few dimensions and one centroid: decoded tokens are some 3 % off length 1."""
    rng = np.random.default_rng(84)
    doclens = rng.integers(1, 10, 1000).astype(np.int32)
    embeddings = unit_vectors(rng, int(doclens.sum()), 8)
    codec = ResidualCodec.fit(embeddings[:1], embeddings, nbits=4, name="default")
    columns = dict(codec.encode(embeddings))
    assert "inverse_norms" not in columns
    shared = {"centroids": codec.centroids, "weights": codec.weights, "doclens": doclens}
    searcher = searcher_of(columns | shared, ops.build_lists(columns["codes"], doclens, 1))
    near = embeddings[rng.integers(len(embeddings), size=1000)]
    queries = list((near + rng.standard_normal((1000, 8), np.float32) * 0.2)[:, None])
    found = searcher.search(queries, SearchParams.resolve(10, ndocs=len(doclens)))
    exact = searcher.search(queries, SearchParams.resolve(10, exhaustive=True))
    assert same_bits(found, exact)


def kept_by_reference(query: np.ndarray, data: Arguments, ndocs: int) -> np.ndarray:
    """Mask of the ndocs documents with the best MaxSim over centroids scored in bytes."""
    table, step = reference.byte_scores(query, data["centroids"])
    scores = (step * (table.astype(np.float64) - reference.TABLE_ZERO)).astype(np.float32)
    doclens = data["doclens"]
    filled = np.flatnonzero(doclens).astype(np.int32)
    rough = reference.approximate_maxsim(scores, data["codes"], doclens, filled)
    return np.isin(np.arange(len(doclens)), filled[reference.top_k(rough, ndocs)[1]])


@every_isa
@pytest.mark.parametrize("ndocs", [70, 24])
@pytest.mark.parametrize("codec", SEARCHERS)
def test_the_documents_best_by_byte_scores_are_searched_exactly(codec: str, ndocs: int) -> None:
    """With 24, so many are gathered that they are screened; of all cells that loses nothing."""
    params = SearchParams.resolve(10, nprobe=40, ndocs=ndocs)
    found = SEARCHERS[codec].search(HARD_QUERIES, params)
    exact = SearchParams.resolve(10, exhaustive=True)
    for row, query in enumerate(HARD_QUERIES):
        kept = kept_by_reference(query, arrays_of(COLLECTIONS[codec], codec), ndocs)
        truth = SEARCHERS[codec].search([query], exact, subset=kept)
        assert same_bits(tuple(each[row : row + 1].copy() for each in found), truth), row


@every_isa
@pytest.mark.parametrize("threads", [1, 3])
def test_the_best_centroids_are_found_in_every_block(threads: int) -> None:
    """Each thread takes some 4,096 centroids at once; every document has one of its own."""
    centroids = unit_vectors(np.random.default_rng(12), 12_000, 16)
    codes, doclens = np.arange(12_000, dtype=np.int32), np.ones(12_000, np.int32)
    arrays = {"centroids": centroids, "codes": codes, "doclens": doclens}
    arrays["embeddings"] = centroids.astype(np.float16)
    searcher = searcher_of(arrays, ops.build_lists(codes, doclens, 12_000))
    wanted = np.arange(5, 12_000, 400)
    queries = [centroids[[row, row]] for row in wanted]
    with use_threads(threads):
        found = searcher.search(queries, SearchParams.resolve(1, nprobe=1, ndocs=1))[0]
    assert found[:, 0].tolist() == wanted.tolist()


@every_isa
@pytest.mark.parametrize("nbits", [2, 4])
def test_more_than_a_step_of_each_stage(nbits: int) -> None:
    """Of 400 documents, far more than 128 at once, the best 150 lie anywhere.

    What likely tokens leave to the others is no normal variable: of 450 hits one may be missed.
    """
    rng = np.random.default_rng(13)
    doclens = rng.integers(1, 12, 700).astype(np.int32)
    options: Arguments = {"nq": 9, "dim": 32, "num_centroids": 30, "doclens": doclens}
    data = make_trellis_collection(rng, nbits=nbits, **options)
    searcher = make_searcher(data, "default")
    queries = [data.query, -data.query, data.embeddings[90:101].copy()]
    found, scores = searcher.search(queries, SearchParams.resolve(150, nprobe=30, ndocs=400))
    missed = 0
    for row, query in enumerate(queries):
        kept = kept_by_reference(query, arrays_of(data, "default"), 400)
        exact = SearchParams.resolve(400, exhaustive=True)
        truth, exact_scores = searcher.search([query], exact, subset=kept)
        place = {document: i for i, document in enumerate(truth[0].tolist())}
        places = [place[document] for document in found[row].tolist()]
        assert places == sorted(places), row
        assert same_bits((scores[row],), (exact_scores[0, places],)), row
        missed += sum(i >= 150 for i in places)
    assert missed <= 1


@pytest.mark.parametrize("nbits", NBITS)
@pytest.mark.parametrize(("alike", "ndocs"), [(138, 250), (42, 80)])
def test_documents_that_are_all_alike_hide_no_other(nbits: int, alike: int, ndocs: int) -> None:
    """Copies of a centroid lead; the one document below them gains by its residual.

    They are as many as get scores before it is seen whether the next can still win.
    """
    rng = np.random.default_rng(3)
    axes = np.eye(32, dtype=np.float32)
    query = axes[:1]
    centroids = np.stack([0.8 * axes[0] + 0.6 * axes[1], 0.7 * axes[0] + 0.714 * axes[2], axes[3]])
    centroids = (centroids / np.linalg.norm(centroids, axis=1, keepdims=True)).astype(np.float32)
    copies = np.repeat(centroids[:1], alike, axis=0)
    better = 0.93 * axes[:1] + 0.36 * axes[2:3]
    others = centroids[2] + 0.6 * unit_vectors(rng, 300, 32)
    embeddings = np.concatenate([copies, better, others]).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    codec = ResidualCodec.fit(centroids, embeddings, nbits=nbits, name="default")
    columns = dict(codec.encode(embeddings))
    doclens = np.ones(len(embeddings), np.int32)
    shared = {"centroids": codec.centroids, "weights": codec.weights, "doclens": doclens}
    searcher = searcher_of(shared | columns, ops.build_lists(columns["codes"], doclens, 3))
    found = searcher.search([query], SearchParams.resolve(10, nprobe=3, ndocs=ndocs))[0]
    assert found[0, 0] == alike


@pytest.mark.parametrize("codec", SEARCHERS)
@pytest.mark.parametrize("options", [FILTERED, RANKED], ids=["filtered", "ranked"])
def test_a_damaged_list_may_name_a_document_without_tokens(codec: str, options: Arguments) -> None:
    rng = np.random.default_rng(4)
    data = make_trellis_collection(rng, **SIZES)
    empty, neighbour = int(np.flatnonzero(DOCLENS == 0)[0]), int(np.flatnonzero(DOCLENS > 1)[0])
    said = DOCLENS.copy()
    said[empty], said[neighbour] = 1, said[neighbour] - 1
    lists = ops.build_lists(data.codes, said, SIZES["num_centroids"])
    searcher = searcher_of(arrays_of(data, codec), lists)
    ids, scores = searcher.search(HARD_QUERIES, SearchParams.resolve(10, **options))
    assert np.isfinite(scores).all()
    assert empty not in ids


@every_isa
@pytest.mark.parametrize("num_centroids", [256, 5000])  # of 5,000 a fifth is sampled
def test_screening_forgives_a_token_that_just_missed(num_centroids: int) -> None:
    """The best hold a token's ninth centroid, where eight are probed; hundreds hold its eighth."""
    rng = np.random.default_rng(11)
    query, centroids = unit_vectors(rng, 4, 32), unit_vectors(rng, num_centroids, 32)
    ranking = np.argsort(-query @ centroids.T)
    best, last, missed = ranking[:, 0], ranking[:, 7], ranking[:, 8]
    common = np.setdiff1d(np.arange(num_centroids), ranking[:, : num_centroids // 4])[:60]
    documents = [np.concatenate([last, common]) for _ in range(600)]
    documents[300:305] = [np.concatenate([best[:3], missed[3:], common]) for _ in range(5)]
    codes = np.concatenate(documents).astype(np.int32)
    doclens = np.full(600, 64, np.int32)
    arrays = {"centroids": centroids, "codes": codes, "doclens": doclens}
    arrays["embeddings"] = centroids[codes].astype(np.float16)
    searcher = searcher_of(arrays, ops.build_lists(codes, doclens, num_centroids))
    found = searcher.search([query], SearchParams.resolve(5, nprobe=8, ndocs=10))[0]
    assert found.tolist() == [[300, 301, 302, 303, 304]]


@pytest.mark.parametrize("codec", EVERY_CODEC)
@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_every_isa_finds_the_same(codec: str, options: Arguments) -> None:
    params = SearchParams.resolve(10, **options)
    found = []
    for name in _core.available_isas():
        with use_isa(name):
            found.append(EVERY_CODEC[codec].search(HARD_QUERIES, params))
    assert all(same_bits(each, found[0]) for each in found)


@every_isa
@pytest.mark.parametrize("codec", SEARCHERS)
def test_a_few_documents_are_scanned(codec: str) -> None:
    # One cell for each token would not reach most of them.
    subset = np.isin(np.arange(len(DOCLENS)), np.flatnonzero(DOCLENS)[5::17])
    params = SearchParams.resolve(10, nprobe=1, ndocs=12)
    found = SEARCHERS[codec].search(HARD_QUERIES, params, subset=subset)
    exact = SearchParams.resolve(10, exhaustive=True)
    assert same_bits(found, SEARCHERS[codec].search(HARD_QUERIES, exact, subset=subset))
    assert (found[0] >= 0).all()


@every_isa
@pytest.mark.parametrize("codec", SEARCHERS)
def test_a_subset_is_filtered_too(codec: str) -> None:
    subset = np.arange(len(DOCLENS)) % 3 > 0
    params = SearchParams.resolve(10, nprobe=6, ndocs=50)
    ids, scores = SEARCHERS[codec].search(QUERIES, params, subset=subset)
    assert subset[ids].all()
    exact = SearchParams.resolve(len(DOCLENS), exhaustive=True)
    for row, (all_ids, all_scores) in enumerate(
        zip(*SEARCHERS[codec].search(QUERIES, exact, subset=subset), strict=True)
    ):
        scored = dict(zip(all_ids.tolist(), all_scores.tolist(), strict=True))
        assert scores[row].tolist() == [scored[document] for document in ids[row].tolist()]
        assert len(set(ids[row]) & set(all_ids[:10])) >= 5


@every_isa
def test_many_probes() -> None:
    # With 64 of 100 cells for each of nine tokens every document is a candidate already.
    data = make_trellis_collection(np.random.default_rng(6), **SIZES | {"num_centroids": 100})
    searcher = make_searcher(data, "default")
    found = [
        searcher.search(QUERIES[::2], SearchParams.resolve(10, nprobe=nprobe, ndocs=60))
        for nprobe in (64, 65, 100, 1000)
    ]
    assert all(same_bits(each, found[0]) for each in found)


@every_isa
@pytest.mark.parametrize("name", ["default", "plaid"])
def test_documents_that_all_score_below_zero(name: Any) -> None:
    rng = np.random.default_rng(8)
    axis = unit_vectors(rng, 1, 32)
    embeddings, centroids = (
        (2 * axis + unit_vectors(rng, n, 32)).astype(np.float32) for n in (int(DOCLENS.sum()), 40)
    )
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    codec = ResidualCodec.fit(centroids, embeddings, nbits=2, name=name)
    columns = codec.encode(embeddings)
    lists = ops.build_lists(columns["codes"], DOCLENS, 40)
    shared: Arguments = {"centroids": codec.centroids, "weights": codec.weights}
    searcher = searcher_of(shared | columns | {"doclens": DOCLENS}, lists)
    queries = [-axis, -embeddings[:32]]
    exact_ids, exact = searcher.search(queries, SearchParams.resolve(280, exhaustive=True))
    assert (exact[:, :200] < 0).all()
    scanned = searcher.search(queries, SearchParams.resolve(10, **SCANNED))
    assert same_bits(scanned, (exact_ids[:, :10].copy(), exact[:, :10].copy()))
    filtered = searcher.search(queries, SearchParams.resolve(10, nprobe=40, ndocs=100))
    exact_10 = SearchParams.resolve(10, exhaustive=True)
    for row, query in enumerate(queries):
        data = {"centroids": codec.centroids, "codes": columns["codes"], "doclens": DOCLENS}
        kept = kept_by_reference(query, data, 100)
        truth = searcher.search([query], exact_10, subset=kept)
        assert same_bits(tuple(each[row : row + 1].copy() for each in filtered), truth)


@any_threads
@pytest.mark.parametrize("codec", SEARCHERS)
@pytest.mark.parametrize(
    "options",
    [SCANNED, FILTERED, RANKED, {"mode": "plaid"}, {"exhaustive": True}],
    ids=["scanned", "filtered", "ranked", "plaid", "exhaustive"],
)
def test_same_bits_alone_in_a_batch_and_on_any_threads(codec: str, options: Arguments) -> None:
    params = SearchParams.resolve(10, **options)
    batch = SEARCHERS[codec].search(HARD_QUERIES, params)
    with use_threads(1):
        alone = [SEARCHERS[codec].search([query], params) for query in HARD_QUERIES]
    assert same_bits(batch, tuple(np.concatenate(rows) for rows in zip(*alone, strict=True)))


# ---- what is refused


@pytest.mark.parametrize(
    ("change", "error", "name"),
    [
        ({"scales": TRELLIS.scales[1:]}, ValueError, r"parts\[0\]\.scales"),
        ({"scales": TRELLIS.scales.astype(np.float32)}, TypeError, r"parts\[0\]\.scales"),
        ({"weights": TRELLIS.weights[:5].copy()}, ValueError, "weights"),
        ({"residuals": TRELLIS.residuals[:, :5].copy()}, ValueError, r"parts\[0\]\.residuals"),
        ({"inverse_norms": TRELLIS.inverse_norms[1:]}, ValueError, r"parts\[0\]\.inverse_norms"),
        ({"doclens": DOCLENS[1:]}, ValueError, r"parts\[0\]\.doclens"),
        ({"weights": None}, ValueError, "weights"),
        ({"centroids": np.full((40, 32), np.nan, np.float32)}, ValueError, "centroids.*finite"),
    ],
)
def test_mistakes_are_named(change: Arguments, error: type[Exception], name: str) -> None:
    arguments = arrays_of(TRELLIS, "default") | {"inverse_norms": TRELLIS.inverse_norms}
    lists = ops.build_lists(TRELLIS.codes, DOCLENS, 40)
    searcher_of(arguments, lists)
    with pytest.raises(error, match=name):
        searcher_of(arguments | change, lists)


def test_a_subset_of_nothing_and_no_queries() -> None:
    params = SearchParams.resolve(4)
    nothing = np.zeros(len(DOCLENS), bool)
    ids, _ = SEARCHERS["plaid"].search(QUERIES, params, subset=nothing)
    assert (ids == -1).all()
    assert SEARCHERS["plaid"].search([], params)[0].shape == (0, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e38])
def test_queries_must_be_finite(value: float) -> None:
    query = DATA.query.copy()
    query[3, 5] = value
    with pytest.raises(ValueError, match="quer"):
        SEARCHERS["plaid"].search([query], SearchParams.resolve(4))


def test_queries_without_tokens_are_refused() -> None:
    params = SearchParams.resolve(3)
    with pytest.raises(ValueError, match="query 1 has no tokens"):
        SEARCHERS["plaid"].search([QUERIES[0], QUERIES[0][:0]], params)
