"""Opening an index: cheap, checked, and safe against files that are not what they should be."""

from __future__ import annotations

import dataclasses
import gc
import json
import pickle
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from colbert_fast.errors import CheckpointError, IndexFormatError
from colbert_fast.index import Index
from colbert_fast.kernels import ops
from colbert_fast.sharded import ShardedIndex
from colbert_fast.storage.files import record_files
from colbert_fast.storage.manifest import Manifest
from colbert_fast.storage.segments import write_npy
from fakes import WordModel
from synthetic import clustered, sentences

FILES = {
    "default": [
        "segment-000000/documents.sqlite",
        "codec-000001/centroid_exponents.npy",
        "codec-000001/centroids.npy",
        "codec-000001/weights.npy",
        "segment-000000/codes.npy",
        "segment-000000/doclens.npy",
        "segment-000000/inverse_norms.npy",
        "segment-000000/list_counts.npy",
        "segment-000000/list_data.npy",
        "segment-000000/list_offsets.npy",
        "segment-000000/residuals.npy",
        "segment-000000/scales.npy",
    ],
    "plaid": [
        "segment-000000/documents.sqlite",
        "codec-000001/centroids.npy",
        "codec-000001/cutoffs.npy",
        "codec-000001/weights.npy",
        "segment-000000/codes.npy",
        "segment-000000/doclens.npy",
        "segment-000000/inverse_norms.npy",
        "segment-000000/list_counts.npy",
        "segment-000000/list_data.npy",
        "segment-000000/list_offsets.npy",
        "segment-000000/residuals.npy",
    ],
    "float16": [
        "segment-000000/documents.sqlite",
        "codec-000001/centroids.npy",
        "segment-000000/codes.npy",
        "segment-000000/doclens.npy",
        "segment-000000/embeddings.npy",
        "segment-000000/list_counts.npy",
        "segment-000000/list_data.npy",
        "segment-000000/list_offsets.npy",
    ],
}
EVERY_FILE = [(codec, name) for codec, names in FILES.items() for name in names]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Indexes of the same documents, one for each codec; not to be changed."""
    folder = tmp_path_factory.mktemp("indexes")
    rng = np.random.default_rng(3)
    documents = list(zip(sentences(rng, 80), clustered(rng, 80, dim=32), strict=True))
    rows = [{"id": f"d{i}", "text": t, "embeddings": e} for i, (t, e) in enumerate(documents)]
    for codec in FILES:
        options: Any = {"codec": codec, "model": WordModel()}
        Index.build(folder / codec, rows, progress=False, **options)
    return folder


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


@pytest.mark.parametrize("codec", FILES)
def test_what_is_on_disk(built: Path, codec: str) -> None:
    found = {str(each.relative_to(built / codec)) for each in (built / codec).rglob("*.*")}
    assert found == {*FILES[codec], "manifest.json", "writer.lock"}
    assert set(Manifest.read(built / codec).files) == set(FILES[codec])
    for name in FILES[codec]:
        if name.endswith(".npy"):
            assert np.load(built / codec / name, mmap_mode="r").flags.c_contiguous


@pytest.mark.parametrize("codec", FILES)
def test_open(built: Path, codec: str) -> None:
    with Index.open(str(built / codec)) as index:
        assert len(index) == 80
        assert index.ids == tuple(f"d{i}" for i in range(80))
        assert index.path == built / codec
        assert f"documents=80, tokens={index.info()['tokens']}, codec='{codec}'" in repr(index)
        index.verify()


def test_info_adds_up(built: Path) -> None:
    for codec, nbits in (("default", 2), ("plaid", 2), ("float16", 16)):
        info = Index.open(built / codec).info()
        size = sum(each.stat().st_size for each in (built / codec).rglob("*") if each.is_file())
        assert info["bytes"] == size
        assert info["bytes_per_token"] == pytest.approx(size / info["tokens"])
        store = (built / codec / "segment-000000" / "documents.sqlite").stat().st_size
        assert info["vector_bytes_per_token"] == pytest.approx((size - store) / info["tokens"])
        raw = 4 * 32 * info["tokens"]
        assert info["compression_vs_float32"] == pytest.approx(raw / (size - store))
        assert info["compression_vs_float16"] == pytest.approx(raw / 2 / (size - store))
        assert (info["codec"], info["nbits"], info["dim"]) == (codec, nbits, 32)
        assert info["model"] == "words"
        json.dumps(info)


def test_opening_reads_no_vectors(built: Path) -> None:
    index = Index.open(built / "plaid")
    [segment] = index._snapshot.segments
    arrays = {**segment.columns, "codes": segment.codes.packed}
    assert all(isinstance(each.base, np.memmap) for each in arrays.values())
    assert "searcher" not in vars(index._snapshot)


def test_searching_needs_neither_torch_nor_the_build(built: Path) -> None:
    code = """
        import sys, numpy as np
        from colbert_fast import Index
        print(len(Index.open(sys.argv[1]).search(np.eye(32, dtype=np.float32)[:4])))
        heavy = {"torch", "transformers", "tqdm", "scipy", "colbert_fast.indexing.build"}
        print(sorted(heavy & {*sys.modules}))
    """
    code = "\n".join(line.strip() for line in code.splitlines())
    found = subprocess.run(
        [sys.executable, "-c", code, built / "plaid"], capture_output=True, text=True, check=True
    )
    assert found.stdout == "10\n[]\n"


# ---- damage


@pytest.mark.parametrize(("codec", "name"), EVERY_FILE)
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "longer"])
def test_damage_that_shows_when_opened(copied: Path, codec: str, name: str, damage: str) -> None:
    path = copied / codec / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "truncated": data[:-1], "longer": data + b"x"}[damage])
    with pytest.raises(IndexFormatError) as caught:
        Index.open(copied / codec)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("codec", "name"), EVERY_FILE)
def test_verify_finds_every_flipped_bit(copied: Path, codec: str, name: str) -> None:
    path = copied / codec / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IndexFormatError) as caught:
        Index.open(copied / codec).verify()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("codec", "name"), EVERY_FILE)
def test_foreign_files_of_the_right_size(copied: Path, codec: str, name: str) -> None:
    path = copied / codec / name
    path.write_bytes(b"\x93NUMPY\x01\x00 foreign".ljust(path.stat().st_size, b"?"))
    with pytest.raises(IndexFormatError) as caught:
        Index.open(copied / codec).verify()
    assert str(path) in str(caught.value)


def test_verify_checks_the_codes_themselves(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    documents = clustered(np.random.default_rng(3), 80, dim=32)
    # Six bits would reach 63.
    Index.build(folder, documents, num_centroids=40, progress=False)
    path = folder / "segment-000000" / "codes.npy"
    codes = np.load(path)
    codes[: -ops.CODE_PADDING] = 255
    path.unlink()
    write_npy(path, codes)
    manifest = Manifest.read(folder)
    record = record_files(folder, ["segment-000000/codes.npy"])
    dataclasses.replace(manifest, files={**manifest.files, **record}).write(folder)
    with pytest.raises(IndexFormatError, match=r"codes\.npy: a code outside"):
        Index.open(folder).verify()
    # A search reads them as the last centroid: wrong scores, but no access outside the arrays.
    assert len(Index.open(folder).search(np.eye(32, dtype=np.float32), k=3)) == 3


def test_damaged_lists_are_found_by_a_search(copied: Path) -> None:
    path = copied / "plaid" / "segment-000000" / "list_data.npy"
    data = bytearray(path.read_bytes())
    data[128:] = b"\xff" * (len(data) - 128)
    path.write_bytes(data)
    with pytest.raises(IndexFormatError, match=r"segment-000000: .*list 0 is corrupt.*verify"):
        Index.open(copied / "plaid").search(
            np.eye(32, dtype=np.float32), k=1, ndocs=1, nprobe=60, mode="plaid"
        )


def test_what_is_no_index(tmp_path: Path, copied: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "nowhere", tmp_path):
        wanted = r"manifest\.json.*is not an index, and Index.import_from takes over"
        with pytest.raises(IndexFormatError, match=wanted if path.is_dir() else "is not an index$"):
            Index.open(path)
    with pytest.raises(IndexFormatError, match="a file, not the folder of an index"):
        Index.open(tmp_path / "file")
    (copied / "plaid" / "manifest.json").unlink()
    with pytest.raises(IndexFormatError, match=r"manifest\.json: no such file"):
        Index.open(copied / "plaid")


def test_an_unfinished_build_does_not_open(copied: Path) -> None:
    path = (copied / "plaid").rename(copied / "plaid.building")
    with pytest.raises(IndexFormatError, match="an unfinished build; build the index again"):
        Index.open(path)


@pytest.mark.parametrize(
    ("version", "message"),
    [(4, r"version 4, .* reads up to 3; upgrade"), (2, r"version 2 was never released .* again")],
)
def test_an_index_of_another_version(copied: Path, version: int, message: str) -> None:
    path = copied / "plaid" / "manifest.json"
    path.write_text(path.read_text().replace('"version": 3', f'"version": {version}'))
    with pytest.raises(IndexFormatError, match=message):
        Index.open(copied / "plaid")


# ---- model


def test_a_model_of_another_dim(built: Path) -> None:
    class Wide(WordModel):
        dim = 64

    model: Any = Wide()
    with pytest.raises(ValueError, match=r"its dim is 64, the index has dim 32; .*words"):
        Index.open(built / "plaid", model=model)


class Weights(WordModel):
    """A model of the same name and size whose weights can be others."""

    def __init__(self, fingerprint: str) -> None:
        self._own = fingerprint

    def fingerprint(self) -> str:
        return self._own


def test_a_model_of_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = Weights("aaaa"), Weights("bbbb")
    built: Any = {"model": first, "progress": False}
    Index.build(tmp_path / "a", ["sky", "sea"], **built).close()
    assert Manifest.read(tmp_path / "a").model_fingerprint == "aaaa"
    Index.open(tmp_path / "a", model=cast("Any", Weights("aaaa"))).close()
    message = r"built with other weights \(fingerprint aaaa, this model has bbbb\); pass the model"
    with pytest.raises(ValueError, match=message):
        Index.open(tmp_path / "a", model=cast("Any", other))
    loader = SimpleNamespace(from_pretrained=lambda _: other)
    monkeypatch.setitem(sys.modules, "colbert_fast.model", SimpleNamespace(ColBERT=loader))
    with pytest.raises(ValueError, match=message):
        Index.open(tmp_path / "a").search("sky")


@dataclasses.dataclass
class Settings:
    """As `ModelConfig`, which needs torch."""

    dim: int = 32
    document_length: int = 20
    skiplist_words: tuple[str, ...] = ("!", "?")


def test_the_settings_of_a_model_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model: Any = WordModel()
    model.config = Settings()
    Index.build(tmp_path / "a", ["sky", "sea"], model=model, progress=False).close()
    asked = {}

    def load(name: str, **settings: Any) -> WordModel:
        asked.update(settings, name=name)
        return WordModel()

    loader = SimpleNamespace(ColBERT=SimpleNamespace(from_pretrained=load))
    monkeypatch.setitem(sys.modules, "colbert_fast.model", loader)
    assert Index.open(tmp_path / "a").search("sky")[0].id == 0
    assert asked == {"name": "words", "document_length": 20, "skiplist_words": ["!", "?"]}
    assert not caplog.messages
    model.config = Settings(document_length=180)
    Index.open(tmp_path / "a", model=model).close()
    [message] = caplog.messages
    assert "its document_length is 180, the index was built with 20" in message


def test_a_model_or_an_index_that_has_no_fingerprint(tmp_path: Path) -> None:
    class Nameless(WordModel):
        fingerprint: Any = None

    with_one: Any = {"model": Weights("aaaa"), "progress": False}
    without: Any = {"model": Nameless(), "progress": False}
    Index.build(tmp_path / "a", ["sky", "sea"], **with_one).close()
    Index.open(tmp_path / "a", model=without["model"]).close()
    Index.build(tmp_path / "b", ["sky", "sea"], **without).close()
    assert Manifest.read(tmp_path / "b").model_fingerprint is None
    Index.open(tmp_path / "b", model=with_one["model"]).close()


def test_the_model_is_found_from_the_manifest(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Loader:
        @staticmethod
        def from_pretrained(name: str | None) -> WordModel:
            asked.append(name)
            return WordModel()

    monkeypatch.setitem(sys.modules, "colbert_fast.model", SimpleNamespace(ColBERT=Loader))
    index = Index.open(built / "plaid")
    assert asked == []
    assert len(index.search("sky", k=3)) == 3
    index.search("sea")
    assert asked == ["words"]


def test_threads_load_the_model_once(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []

    def load(_: str | None) -> WordModel:
        loads.append(1)
        time.sleep(0.1)
        return WordModel()

    loader = SimpleNamespace(ColBERT=SimpleNamespace(from_pretrained=load))
    monkeypatch.setitem(sys.modules, "colbert_fast.model", loader)
    index = Index.open(built / "plaid")
    with ThreadPoolExecutor(8) as pool:
        assert len([*pool.map(index.search, ["sky"] * 8)]) == 8
    assert len(loads) == 1


def test_a_model_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: Any) -> WordModel:
        asked.append(name)
        return WordModel()

    loader = SimpleNamespace(ColBERT=SimpleNamespace(from_pretrained=load))
    monkeypatch.setitem(sys.modules, "colbert_fast.model", loader)
    index = Index.build(tmp_path / "a", ["sky", "sea"], model="default", progress=False)
    assert index.search("sky")[0].id == 0
    assert Index.open(tmp_path / "a", model=tmp_path).search("sea")[0].id == 1
    assert ShardedIndex([tmp_path / "a"] * 2, model="default").search("sea", k=1)[0].id == 1
    assert asked == ["default", tmp_path, "default"]


def test_an_index_is_not_made_by_its_class() -> None:
    given: Any = "docs.cf"
    with pytest.raises(TypeError, match=r"opened by Index.open\(path\) and made by Index.build"):
        Index(given)


@pytest.mark.parametrize("error", [CheckpointError("no folder"), OSError("offline")])
def test_a_model_that_cannot_be_found(
    built: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Loader:
        @staticmethod
        def from_pretrained(_: str | None) -> WordModel:
            raise error

    monkeypatch.setitem(sys.modules, "colbert_fast.model", SimpleNamespace(ColBERT=Loader))
    with pytest.raises(CheckpointError, match=r"built with the model 'words', which cannot"):
        Index.open(built / "plaid").search("sky")


def test_an_index_without_a_model(tmp_path: Path, rng: np.random.Generator) -> None:
    index = Index.build(tmp_path / "a", clustered(rng, 10), progress=False)
    with pytest.raises(ValueError, match=r"names no model: say which one.*model= of Index\.open"):
        index.search("sky")


# ---- life


def test_closed(built: Path) -> None:
    index = Index.open(built / "plaid")
    query = np.eye(32, dtype=np.float32)[:4]
    index.search(query)
    index.close()
    index.close()
    for call in (lambda: index.search(query), index.verify):
        with pytest.raises(ValueError, match="is closed"):
            call()


def test_an_index_is_not_pickled(built: Path) -> None:
    with (
        Index.open(built / "plaid") as index,
        pytest.raises(TypeError, match="cannot be pickled: pass the path to the other process"),
    ):
        pickle.dumps(index)


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files as Linux lists them")
def test_refreshing_lets_go_of_the_old_files(tmp_path: Path) -> None:
    index = Index.build(tmp_path / "a", list(np.eye(32, dtype=np.float32)[:, None]), progress=False)
    gc.collect()
    gc.disable()
    try:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for number in range(5):
            index.delete([number])
            index.search(np.eye(32, dtype=np.float32))
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    finally:
        gc.enable()


def test_many_threads_search_one_index(built: Path, rng: np.random.Generator) -> None:
    index = Index.open(built / "plaid")
    queries = [rng.standard_normal((4, 32)).astype(np.float32) for _ in range(20)]
    expected = [index.search(query) for query in queries]
    index = Index.open(built / "plaid")
    answers: list[Any] = [None] * 4

    def work(slot: int) -> None:
        answers[slot] = [index.search(query) for query in queries]

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 4
