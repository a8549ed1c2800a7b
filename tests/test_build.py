"""Building: any source, bounded and reproducible, complete or not there at all."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from colbert_fast import _core
from colbert_fast.compress import kmeans
from colbert_fast.index import Index
from colbert_fast.indexing import build, ingest
from colbert_fast.kernels import reference
from fakes import WordModel
from support import use_isa, use_threads
from synthetic import clustered, files, make, sentences


def decoded(index: Index) -> np.ndarray:
    columns = index._snapshot.segments[0].columns
    return index._snapshot.codec.decode({name: each[:] for name, each in columns.items()})


@pytest.fixture
def documents(rng: np.random.Generator) -> list[np.ndarray]:
    return clustered(rng, 120)


# ---- sources


class ReadsAhead(WordModel):
    """Takes all texts before it gives the first rows."""

    def encode_documents(self, texts: Any, **options: Any) -> Iterator[np.ndarray]:
        yield from super().encode_documents(list(texts), **options)


def test_embeddings_from_every_kind_of_source(tmp_path: Path, documents: list[np.ndarray]) -> None:
    sources = {
        "list": documents,
        "generator": (each for each in documents),
        "float64": [each.astype(np.float64) for each in documents],
        "strided": [np.repeat(each, 2, axis=1)[:, ::2] for each in documents],
        "pairs": list(enumerate(documents)),
        "dicts": [{"embeddings": each} for each in documents],
    }
    expected = files(make(tmp_path / "expected", documents).path)
    for name, source in sources.items():
        assert files(make(tmp_path / name, source).path) == expected, name


def test_embeddings_as_tensors(tmp_path: Path, documents: list[np.ndarray]) -> None:
    torch = pytest.importorskip("torch")
    tensors = [torch.from_numpy(each) for each in documents]
    expected = files(make(tmp_path / "expected", documents).path)
    assert files(make(tmp_path / "tensors", tensors).path) == expected
    learned = [each.clone().requires_grad_() for each in tensors]
    assert files(make(tmp_path / "learned", learned).path) == expected
    index = make(tmp_path / "bfloat16", [each.bfloat16() for each in tensors], codec="float16")
    np.testing.assert_allclose(decoded(index), np.concatenate(documents), atol=1e-2)


def test_a_source_that_fills_its_buffer_again(tmp_path: Path, documents: list[np.ndarray]) -> None:
    def source(dtype: type) -> Iterator[np.ndarray]:
        buffer = np.empty((20, 64), dtype)
        for each in documents:
            buffer[: len(each)] = each
            yield buffer[: len(each)]

    for dtype in (np.float16, np.float32, np.float64):
        expected = make(tmp_path / f"e{dtype.__name__}", [each.astype(dtype) for each in documents])
        index = make(tmp_path / f"r{dtype.__name__}", source(dtype))
        assert files(index.path) == files(expected.path)


def test_an_array_of_documents(tmp_path: Path, rng: np.random.Generator) -> None:
    block = np.stack([each[:1].repeat(5, axis=0) for each in clustered(rng, 30)])
    index = make(tmp_path / "a", block)
    assert (len(index), index.info()["tokens"]) == (30, 150)


def test_texts_are_encoded_and_kept(tmp_path: Path, rng: np.random.Generator) -> None:
    texts = sentences(rng, 50)
    index = make(
        tmp_path / "a",
        ({"id": f"d{i}", "text": text, "row": i} for i, text in enumerate(texts)),
        model=ReadsAhead(),
    )
    assert index.ids == tuple(f"d{i}" for i in range(50))
    hit = index.search(texts[7], k=50)[0]
    assert hit.text is not None
    assert set(hit.text.split()) >= set(texts[7].split())
    assert hit.metadata == {"row": int(str(hit.id)[1:])}
    assert index.info()["model"] == "words"
    assert index.info()["tokens"] == sum(len(text.split()) + 1 for text in texts)


def test_texts_and_embeddings_together(tmp_path: Path, documents: list[np.ndarray]) -> None:
    rows = [{"text": f"text {i}", "embeddings": each} for i, each in enumerate(documents)]
    index = make(tmp_path / "a", rows)
    assert index.search(documents[5], k=1)[0].text is not None


def test_one_token(tmp_path: Path) -> None:
    index = make(tmp_path / "a", [np.ones((1, 8), np.float32)])
    assert index.info()["centroids"] == 1
    assert len(index.search(np.ones((1, 8), np.float32))) == 1


@pytest.mark.parametrize("codec_name", ["default", "plaid"])
@pytest.mark.parametrize("nbits", [1, 2, 3, 4, 8])
def test_stored_vectors_follow_the_formulas(
    tmp_path: Path, documents: list[np.ndarray], nbits: int, codec_name: str
) -> None:
    index = make(tmp_path / "a", documents, nbits=nbits, codec=codec_name)
    codec, columns = index._snapshot.codec, index._snapshot.segments[0].columns
    tokens = np.concatenate(documents).astype(np.float16)
    codes, _ = reference.assign(tokens, codec.centroids)
    np.testing.assert_array_equal(columns["codes"][:], codes)
    if codec.cutoffs is not None:
        _, residuals = reference.compress(tokens, codec.centroids, codec.cutoffs)
        assert (columns["residuals"] != residuals).mean() < 1e-3
    for name, column in codec.encode(tokens).items():
        np.testing.assert_array_equal(columns[name][:], column)
    lists = reference.build_lists(codes, index._snapshot.segments[0].doclens, len(codec.centroids))
    [segment] = index._snapshot.segments
    np.testing.assert_array_equal(segment.list_counts, lists.counts)
    np.testing.assert_array_equal(segment.list_data, lists.data)
    np.testing.assert_array_equal(segment.doclens, [len(each) for each in documents])


def test_float16_keeps_the_vectors(tmp_path: Path, documents: list[np.ndarray]) -> None:
    index = make(tmp_path / "a", documents, codec="float16")
    np.testing.assert_array_equal(decoded(index), np.concatenate(documents).astype(np.float16))


def test_pooling(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = clustered(rng, 40, longest=20)
    index = make(tmp_path / "a", documents, pool_factor=2, codec="float16")
    doclens = np.array([len(each) for each in documents], np.int32)
    rows = np.concatenate(documents).astype(np.float16)
    expected, expected_doclens = reference.pool(rows, doclens, 2)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_array_equal(index._snapshot.segments[0].doclens, expected_doclens)
    np.testing.assert_allclose(decoded(index), expected, atol=1e-3)
    monkeypatch.setattr(ingest, "_CHUNK_BYTES", 4000)
    others = make(tmp_path / "b", documents, pool_factor=2, codec="float16")
    assert files(others.path) == files(index.path)


def test_pooling_of_texts_is_that_of_their_embeddings(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    model, texts = WordModel(), sentences(rng, 50)
    index = make(tmp_path / "a", texts, model=model, pool_factor=3)
    embeddings = model.encode_documents(texts)
    same = make(tmp_path / "b", embeddings, pool_factor=3)
    assert index.info()["tokens"] < 0.6 * sum(map(len, embeddings))
    np.testing.assert_array_equal(decoded(index), decoded(same))


def test_rows_that_cancel_out_name_their_document(
    tmp_path: Path, documents: list[np.ndarray]
) -> None:
    opposite = np.eye(64)[[0, 1, 1]] * [[1], [1], [-1]]
    with pytest.raises(ValueError, match=r"document 7: token vectors cancel out when .* pooled"):
        make(tmp_path / "a", [*documents[:7], opposite, *documents[7:]], pool_factor=2)


# ---- vectors


def test_other_lengths_are_normalised(
    tmp_path: Path, documents: list[np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    scales = np.float64(10.0) ** np.arange(-30, 30)
    scaled = [each * scales[i % 60] for i, each in enumerate(documents)]
    with caplog.at_level(logging.WARNING):
        index = make(tmp_path / "a", scaled, codec="float16")
    assert "were not of unit length" in caplog.text
    np.testing.assert_allclose(decoded(index), np.concatenate(documents), atol=1e-3)


def with_value(value: float) -> np.ndarray:
    """Three vectors, of which the last is not usable."""
    rows = np.ones((3, 64))
    rows[2] = value
    return rows


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (with_value(np.nan), ValueError, "document 'd5': token vector 2 is not finite"),
        (with_value(-np.inf), ValueError, "document 'd5': token vector 2 is not finite"),
        (with_value(0), ValueError, "document 'd5': token vector 2 is zero"),
        (np.zeros((0, 64)), ValueError, r"document 'd5': no token vectors \(0, 64\)"),
        (np.ones((2, 32)), ValueError, "document 'd5': dim is 32, other documents have 64"),
        (np.ones(64), ValueError, r"'d5': .* shape \(tokens, dim\), got \(64,\); a single"),
        (np.ones((2, 64), np.int64), TypeError, "document 'd5': embeddings must be floats, got"),
        ("text", ValueError, "document 'd5' has no embeddings, earlier ones have"),
    ],
)
@pytest.mark.parametrize("pool_factor", [1, 2])
def test_bad_vectors_name_their_document(
    tmp_path: Path,
    documents: list[np.ndarray],
    bad: Any,
    error: type[Exception],
    message: str,
    pool_factor: int,
) -> None:
    given = [*documents[:5], bad, *documents[5:]]
    ids = [f"d{i}" for i in range(len(given))]
    with pytest.raises(error, match=message):
        make(tmp_path / "a", given, ids=ids, pool_factor=pool_factor)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_vector_in_a_later_chunk(
    tmp_path: Path, documents: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "_CHUNK_BYTES", 4000)
    given = [*documents[:90], with_value(np.nan), *documents[90:]]
    with pytest.raises(ValueError, match="document 90: token vector 2 is not finite"):
        make(tmp_path / "a", given)


def test_texts_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a model is needed .* pass model="):
        make(tmp_path / "a", ["text"])
    with pytest.raises(ValueError, match="document 1 has embeddings, earlier ones have none"):
        make(tmp_path / "a", ["text", np.ones((1, 64))], model=WordModel())
    with pytest.raises(ValueError, match="document 0: not valid Unicode"):
        make(tmp_path / "a", ["\ud800"], model=WordModel())
    assert list(tmp_path.iterdir()) == []


def test_empty_texts_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        index = make(tmp_path / "a", ["", "sky", " \n"], model=WordModel())
    assert "2 of 3 documents are empty" in caplog.text
    assert len(index) == 3


def test_a_model_that_loses_documents(tmp_path: Path) -> None:
    class Forgetful(WordModel):
        def encode_documents(self, texts: Any, **_: Any) -> Iterator[np.ndarray]:
            yield from super().encode_documents(list(texts)[1:])

    with pytest.raises(RuntimeError, match="the model returned 2 of 3 documents"):
        make(tmp_path / "a", ["a", "b", "c"], model=Forgetful())


# ---- arguments


class Odd(WordModel):
    dim = 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nbits": 5}, "nbits must be one of"),
        ({"codec": "zip"}, "codec must be one of .*, got 'zip'"),
        ({"num_centroids": 0}, "num_centroids must be at least 1, got 0"),
        ({"kmeans_iterations": -1}, "kmeans_iterations must be at least 0, got -1"),
        ({"pool_factor": 0}, "pool_factor must be at least 1, got 0"),
        ({"pool_factor": 1.5}, "pool_factor must be an int, got float"),
        ({"num_centroids": 2.5}, "num_centroids must be an int, got float"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 1.5}, "seed must be an int, got float"),
        ({"memory_budget": 10}, r"memory_budget must be at least 209\d+, got 10"),
        ({"memory_budget": "1G"}, "memory_budget must be an int, got str"),
        ({"model": Odd()}, "dim must be a multiple of 8"),
        ({"ids": ["a", "b"]}, "ids: 2 given, but there are more documents"),
        ({"ids": ["a", "b", "a"]}, "ids must be unique: 'a'"),
        ({"ids": "abc"}, "ids must be an iterable of many, got one str"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    class Untouched(WordModel):
        def encode_documents(self, *_: Any, **__: Any) -> Iterator[np.ndarray]:
            raise AssertionError("encoded something")

    options = {"model": Untouched(), **options}
    with pytest.raises((ValueError, TypeError), match=message):
        make(tmp_path / "a", ["x", "y", "z"], **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("documents", [[], iter([]), np.zeros((0, 3, 64), np.float32)])
def test_no_documents(tmp_path: Path, documents: Any) -> None:
    with pytest.raises(ValueError, match="no documents: an index needs at least one"):
        make(tmp_path / "a", documents)
    assert list(tmp_path.iterdir()) == []


def test_one_document_instead_of_many(tmp_path: Path) -> None:
    for given in ("one text", tmp_path / "docs.jsonl", {"a": "one"}, MappingProxyType({})):
        message = f"documents must be .* got one {type(given).__name__}; read_corpus.* items()"
        with pytest.raises(TypeError, match=message):
            make(tmp_path / "a", given, model=WordModel())
    with pytest.raises(ValueError, match=r"document 0: .* got \(64,\); a single document goes in"):
        make(tmp_path / "a", np.ones((3, 64)))


def test_a_table_is_told_of_its_rows(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed (extra train)")
    table = pandas.DataFrame({"id": ["a", "b"], "text": ["sky", "sea"]})
    with pytest.raises(TypeError, match=r"a DataFrame .* its columns; .* df.to_dict"):
        make(tmp_path / "a", table, model=WordModel())
    assert make(tmp_path / "a", table.to_dict("records"), model=WordModel()).ids == ("a", "b")
    assert make(tmp_path / "b", table["text"], model=WordModel()).ids == (0, 1)


def test_dims_the_kernels_do_not_take(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dim must be a multiple of 8 .* got 100"):
        make(tmp_path / "a", [np.ones((2, 100))])
    assert list(tmp_path.iterdir()) == []


def test_embeddings_of_another_dim_than_the_model_leave_the_old_index_alone(
    tmp_path: Path, documents: list[np.ndarray]
) -> None:
    before = files(make(tmp_path / "a", documents).path)
    message = "document 0: dim is 64, the model's is 32; pass the model that made the embeddings"
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "a", documents, model=WordModel(), overwrite=True)
    assert files(tmp_path / "a") == before
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_duplicate_ids_in_a_stream(tmp_path: Path, documents: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="ids must be unique: 7 is"):
        make(tmp_path / "a", iter(documents), ids=(min(i, 7) for i in range(120)))
    assert list(tmp_path.iterdir()) == []


# ---- one pass, bounded, reproducible


def test_same_input_same_files(tmp_path: Path, documents: list[np.ndarray]) -> None:
    first = files(make(tmp_path / "a", documents).path)
    assert files(make(tmp_path / "b", documents).path) == first
    assert files(make(tmp_path / "c", documents, seed=1).path) != first
    for threads in (1, 2, 5):
        with use_threads(threads):
            assert files(make(tmp_path / f"t{threads}", documents).path) == first


@pytest.mark.parametrize("options", [{}, {"codec": "float16"}, {"nbits": 8, "codec": "plaid"}])
def test_every_instruction_set_builds_the_same_files(
    tmp_path: Path, rng: np.random.Generator, options: dict[str, Any]
) -> None:
    documents = clustered(rng, 250)
    built = {}
    for isa in _core.available_isas():
        with use_isa(isa):
            found = files(make(tmp_path / isa, documents, **options).path)
        built[isa] = {name: data for name, data in found.items() if name.endswith(".npy")}
    expected = built["scalar"]
    assert len(expected) >= 7
    for isa, arrays in built.items():
        assert arrays.keys() == expected.keys()
        assert [name for name in expected if arrays[name] != expected[name]] == [], isa


def test_chunks_do_not_show(
    tmp_path: Path, documents: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = files(make(tmp_path / "a", documents).path)
    monkeypatch.setattr(ingest, "_CHUNK_BYTES", 4000)
    assert files(make(tmp_path / "b", documents).path) == whole


@pytest.mark.parametrize("sized", [True, False])
def test_more_tokens_than_the_spill_holds(
    tmp_path: Path,
    documents: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    sized: bool,
) -> None:
    largest = 0
    append = build.Spill.append

    def watch(spill: build.Spill, *chunk: Any) -> None:
        nonlocal largest
        append(spill, *chunk)
        largest = max(largest, spill.num_tokens)

    monkeypatch.setattr(build.Spill, "append", watch)
    monkeypatch.setattr(build, "_SPILL_TOKENS", 200)
    monkeypatch.setattr(ingest, "_CHUNK_BYTES", 4000)
    index = make(tmp_path / "a", documents if sized else iter(documents))
    assert 200 <= largest < 300
    tokens = sum(map(len, documents))
    assert index.info()["tokens"] == tokens
    cosine = (decoded(index) * np.concatenate(documents)).sum(axis=1)
    assert cosine.mean() > 0.85
    assert f"documents only ({largest} tokens); shuffle the documents if they" in caplog.text
    # Of a stream of unknown length, what was spilled counts as all there is.
    assert ("tokens were sampled to fit them; pass num_centroids=" in caplog.text) == sized
    if sized:
        assert index.info()["centroids"] == largest // 32
    else:
        assert index.info()["centroids"] <= 2 ** int(np.log2(16 * np.sqrt(largest)))
    index.verify()


def test_a_sample_that_is_the_collection_or_a_given_number_cuts_no_centroids(
    tmp_path: Path,
    documents: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokens = sum(map(len, documents))
    monkeypatch.setattr(build, "_SPILL_TOKENS", tokens)
    monkeypatch.setattr(ingest, "_CHUNK_BYTES", 4000)
    make(tmp_path / "a", documents)
    assert caplog.text == ""
    monkeypatch.setattr(build, "_SPILL_TOKENS", 200)
    assert make(tmp_path / "b", documents, num_centroids=99).info()["centroids"] == 99
    assert "centroids are fitted on the first" in caplog.text
    assert "instead of" not in caplog.text


def test_a_stream_is_read_once_and_as_it_is_needed(
    tmp_path: Path, documents: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_SPILL_TOKENS", 200)
    monkeypatch.setattr(ingest, "_CHUNK_BYTES", 4000)
    read = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal read
        for each in documents:
            read += 1
            yield each

    def fit(*args: Any, **options: Any) -> np.ndarray:
        assert 200 / 12 < read < 60
        return kmeans.fit_centroids(*args, **options)

    monkeypatch.setattr(build, "fit_centroids", fit)
    make(tmp_path / "a", source())
    assert read == len(documents)


def test_number_of_centroids(tmp_path: Path, rng: np.random.Generator) -> None:
    documents = clustered(rng, 700)
    tokens = sum(map(len, documents))
    index = make(tmp_path / "a", documents, kmeans_iterations=1)
    assert index.info()["centroids"] == 2 ** int(np.log2(16 * np.sqrt(tokens)))
    assert make(tmp_path / "b", documents, num_centroids=33).info()["centroids"] == 33


def test_progress_bars(
    tmp_path: Path, documents: list[np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "a", documents)
    assert capsys.readouterr() == ("", "")
    Index.build(tmp_path / "b", documents)
    out, err = capsys.readouterr()
    assert out == ""
    for stage in ("read documents: 100%", "k-means: 100%", "compressing: 100%"):
        assert stage in err


def test_relative_paths(
    tmp_path: Path, documents: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    index = make(Path("a"), documents[:20])
    monkeypatch.chdir("/")
    index.verify()
    assert index.path == tmp_path / "a"


def test_a_source_that_changes_the_working_folder(
    tmp_path: Path, documents: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def source() -> Iterator[np.ndarray]:
        yield documents[0]
        monkeypatch.chdir("/")
        yield documents[1]

    monkeypatch.chdir(tmp_path)
    assert make(Path("a"), source()).path == tmp_path / "a"


def test_numbers_as_numpy_has_them(tmp_path: Path, documents: list[np.ndarray]) -> None:
    names = ("nbits", "pool_factor", "num_centroids", "kmeans_iterations", "seed")
    index = make(tmp_path / "a", documents[:20], **dict.fromkeys(names, np.int64(2)))
    assert (index.manifest.nbits, index.manifest.num_centroids) == (2, 2)


def test_the_manifest_says_what_was_built(tmp_path: Path, rng: np.random.Generator) -> None:
    index = make(tmp_path / "a", clustered(rng, 20, dim=32), nbits=4, model=WordModel())
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"]) == ("colbert_fast", 3)
    assert (manifest["codec"], manifest["nbits"], manifest["dim"]) == ("default", 4, 32)
    assert manifest["model"] == "words"
    assert {*manifest["files"], "writer.lock"} == set(files(index.path))
