"""Indexes of other libraries: read with the same scores, written back, refused when damaged."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colbert_fast import Index
from colbert_fast.errors import IndexExistsError, IndexFormatError
from colbert_fast.storage.interop import open_foreign
from colbert_fast.storage.interop.torch_files import read_tensors, write_tensors
from foreign_indexes import (
    FOREIGN,
    INDEX,
    LAYOUTS,
    PIDS,
    QUERIES,
    SCORES,
    golden_arrays,
    write_fast_plaid,
    write_json,
    write_merged,
    write_next_plaid,
    write_stanford,
    write_xtr_warp,
    write_xtr_warp_rs,
)

WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "exhaustive": {"exhaustive": True},
    "plaid": {"mode": "plaid", "nprobe": 64, "ndocs": 240, "centroid_score_threshold": 0.0},
}


def imported(source: Path, path: Path, **options: Any) -> Index:
    return Index.import_from(source, path, progress=False, **options)


def assert_engines_answers(index: Index, **options: Any) -> None:
    """Scores to 1e-3, and the same documents where scores differ by more."""
    for hits, pids, scores in zip(index.search(QUERIES, 10, **options), PIDS, SCORES, strict=True):
        found = np.array([hit.score for hit in hits])
        np.testing.assert_allclose(found, scores, atol=1e-3)
        certain = scores > scores[-1] + 1e-3
        assert {hit.id for hit in hits} >= set(pids[certain].tolist())


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_stanfords_index_gives_stanfords_answers(tmp_path: Path, way: dict[str, Any]) -> None:
    with imported(INDEX, tmp_path / "index") as index:
        assert_engines_answers(index, **way)
        assert index.ids == tuple(range(60))
        assert index.info()["model"] is None
        index.verify()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_fast_plaids_index_gives_fast_plaids_answers(tmp_path: Path, way: dict[str, Any]) -> None:
    """Its scores are those of a query in float16, so a sum of eight is off by some 1e-3."""
    golden = FOREIGN / "fast-plaid"
    queries = np.load(golden / "queries.npy").astype(np.float16).astype(np.float32)
    with imported(golden / "index", tmp_path / "index") as index:
        found = index.search(queries, 10, **way)
        scores = np.array([[hit.score for hit in hits] for hits in found])
        np.testing.assert_allclose(scores, np.load(golden / "scores.npy"), atol=1e-3)
        pids = [[hit.id for hit in hits] for hits in found]
        assert pids == np.load(golden / "pids.npy").tolist()
        index.verify()


def test_warps_index_gives_warps_documents(tmp_path: Path) -> None:
    """Its scores are of rows that are not normalised, so of the ten best some may differ."""
    golden = FOREIGN / "xtr-warp-rs"
    with imported(golden / "index", tmp_path / "index") as index:
        assert len(index) == 60
        found = index.search(np.load(golden / "queries.npy"), 10)
        theirs = np.load(golden / "pids.npy").tolist()
        shared = [
            len({hit.id for hit in hits} & {*pids})
            for hits, pids in zip(found, theirs, strict=True)
        ]
        assert min(shared) >= 8
        assert [hits[0].id for hits in found] == [pids[0] for pids in theirs]
        index.verify()


@pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_of_the_same_codes_gives_the_same_answers(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write(tmp_path / "foreign")
    with imported(tmp_path / "foreign", tmp_path / "index") as index:
        assert_engines_answers(index)
        assert index.info()["tokens"] == 626
        index.verify()


@pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)
def test_codes_and_residuals_stay_as_they_are(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write(tmp_path / "foreign")
    expected = golden_arrays()
    chunks = list(open_foreign(tmp_path / "foreign").chunks(most=50))
    assert len(chunks) > 10
    codes, residuals, doclens, pids = map(np.concatenate, zip(*chunks, strict=True))
    assert doclens.tolist() == expected.doclens.tolist()
    assert pids.tolist() == list(range(60))
    rows = np.column_stack([codes, residuals])
    wanted = np.column_stack([expected.codes, expected.residuals])
    if "warp" in open_foreign(tmp_path / "foreign").layout:  # tokens of a document by centroid
        place = np.repeat(pids, doclens)
        wanted = wanted[np.lexsort([np.arange(len(wanted)), expected.codes, place])]
    np.testing.assert_array_equal(rows, wanted)


def test_chunks_newer_than_the_merged_file_win(tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    write_merged(folder)
    write_fast_plaid(tmp_path / "chunks")
    for name in ("codes", "residuals"):
        shutil.copy(tmp_path / "chunks" / f"1.{name}.npy", folder)
        merged = np.load(folder / f"merged_{name}.npy")
        merged[-300:] = 0
        np.save(folder / f"merged_{name}.npy", merged)
    with imported(folder, tmp_path / "index") as index:
        assert_engines_answers(index)


def test_centroids_that_float16_cannot_hold_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    write_next_plaid(folder)
    centroids = np.load(folder / "centroids.npy") * np.float32(1.0001)
    np.save(folder / "centroids.npy", centroids)
    with imported(folder, tmp_path / "index") as index:
        stored = np.load(tmp_path / "index" / "codec-000001" / "centroids.npy")
        np.testing.assert_array_equal(stored, centroids)
        index.verify()
        index.search(QUERIES[0])
        index.export(tmp_path / "exported", progress=False)
    np.testing.assert_array_equal(open_foreign(tmp_path / "exported").centroids, centroids)


def test_documents_bring_texts_ids_and_metadata(tmp_path: Path) -> None:
    documents = [{"id": f"d{n}", "text": f"text {n}", "n": n} for n in range(60)]
    with imported(INDEX, tmp_path / "index", documents=documents) as index:
        hit = index.search(QUERIES[0], 1)[0]
        number = int(PIDS[0, 0])
        assert (hit.id, hit.text, hit.metadata) == (f"d{number}", f"text {number}", {"n": number})


def test_ids_alone(tmp_path: Path) -> None:
    with imported(INDEX, tmp_path / "index", ids=(f"d{n}" for n in range(60))) as index:
        assert index.ids[:2] == ("d0", "d1")


@pytest.mark.parametrize("count", [59, 61])
@pytest.mark.parametrize("kind", ["documents", "ids"])
@pytest.mark.parametrize("form", [list, iter])
def test_as_many_documents_as_in_the_index(
    tmp_path: Path, count: int, kind: str, form: Callable[[Any], Any]
) -> None:
    names = form([str(n) for n in range(count)])
    with pytest.raises(ValueError, match=f"{kind}: .* given|documents or ids: .*(for|given)"):
        imported(INDEX, tmp_path / "index", **{kind: names})
    assert not list(tmp_path.iterdir())


def test_deleted_documents_of_stanford_leave_their_numbers_behind(tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    write_stanford(folder)
    arrays = golden_arrays()
    lengths = arrays.doclens.tolist()
    write_json(folder / "metadata.json", {"config": {"dim": 32, "nbits": 2}, "num_chunks": 1})
    write_json(folder / "doclens.0.json", [*lengths[:3], 0, *lengths[4:]])
    start, end = sum(lengths[:3]), sum(lengths[:4])
    for name, rows in (("codes", arrays.codes), ("residuals", arrays.residuals)):
        (folder / f"0.{name}.pt").unlink()
        left = np.delete(rows, slice(start, end), axis=0)
        write_tensors(folder / f"0.{name}.pt", [left], as_tuple=False)
    texts = [f"text {n}" for n in range(60)]
    with imported(folder, tmp_path / "index", documents=texts) as index:
        assert index.ids == (0, 1, 2, *range(4, 60))
        assert {hit.text for hit in index.search(QUERIES[0], 59)} == {*texts} - {"text 3"}


def test_deleted_documents_of_warp(tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    write_xtr_warp_rs(folder)
    np.save(folder / "deleted_pids.npy", np.array([0, 7, 59]))
    write_json(folder / "metadata.json", {"next_passage_id": 62})
    with imported(folder, tmp_path / "index", ids=range(100, 162)) as index:
        assert index.ids == tuple(100 + n for n in range(60) if n not in (0, 7, 59))
        assert index.add([QUERIES[0]], progress=False) == 1
        assert index.ids[-1] == 159


def test_export_and_import_give_the_same_bytes(tmp_path: Path) -> None:
    with imported(INDEX, tmp_path / "first", ids=[f"d{n}" for n in range(60)]) as index:
        index.export(tmp_path / "exported", progress=False)
    with imported(tmp_path / "exported", tmp_path / "second") as index:
        assert index.ids == tuple(f"d{n}" for n in range(60))
    for name in ("segment-000000", "codec-000001"):
        for file in (tmp_path / "first" / name).glob("*.npy"):
            assert file.read_bytes() == (tmp_path / "second" / name / file.name).read_bytes()


def test_export_holds_what_stanford_wrote(tmp_path: Path) -> None:
    with imported(INDEX, tmp_path / "index") as index:
        index.export(tmp_path / "exported", progress=False)
    for name in ("centroids", "buckets", "0.codes", "0.residuals", "ivf.pid"):
        pairs = zip(
            read_tensors(tmp_path / "exported" / f"{name}.pt"),
            read_tensors(INDEX / f"{name}.pt"),
            strict=True,
        )
        for ours, theirs in pairs:
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs[: len(ours)])  # Stanford pads its lists


def test_export_leaves_deleted_documents_out(tmp_path: Path) -> None:
    with imported(INDEX, tmp_path / "index") as index:
        index.delete([0, 30])
        index.add([QUERIES[0]], ids=["new"], progress=False)
        index.export(tmp_path / "exported", progress=False)
        expected = index.search(QUERIES, 10, exhaustive=True)
    with imported(tmp_path / "exported", tmp_path / "again", ids=range(59)) as again:
        found = again.search(QUERIES, 10, exhaustive=True)
    names = [*range(1, 30), *range(31, 60), "new"]
    for hits, wanted in zip(found, expected, strict=True):
        assert [names[hit.id] for hit in hits] == [hit.id for hit in wanted]


@pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)
def test_truncated_missing_and_foreign_files(tmp_path: Path, write: Callable[[Path], None]) -> None:
    folder = tmp_path / "foreign"
    write(folder)
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for damaged in (whole[: len(whole) // 2], whole[:-1], b"", b"\x00" * len(whole), None):
            file.unlink()
            if damaged is not None:
                file.write_bytes(damaged)
            elif "manifest" in file.name:
                continue  # doclens tell the rows as well
            with pytest.raises(IndexFormatError, match="foreign"):
                imported(folder, tmp_path / "index")
            assert [each.name for each in tmp_path.iterdir()] == ["foreign"]
            file.touch()
        file.write_bytes(whole)


@pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)
def test_swapped_files(tmp_path: Path, write: Callable[[Path], None]) -> None:
    """Two files under each other's names are refused, or change nothing."""
    folder = tmp_path / "foreign"
    write(folder)
    for first, second in itertools.combinations(sorted(folder.iterdir()), 2):
        if first.read_bytes() == second.read_bytes():
            continue
        between = tmp_path / "between"
        first.rename(between)
        second.rename(first)
        between.rename(second)
        with pytest.raises(IndexFormatError, match="foreign"):
            imported(folder, tmp_path / "index")
        first.rename(between)
        second.rename(first)
        between.rename(second)


def with_array(folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    np.save(folder / name, change(np.load(folder / name)))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("0.codes.npy", lambda codes: codes - 1000),
        ("0.codes.npy", lambda codes: np.full_like(codes, 256)),
        ("0.codes.npy", lambda codes: codes.astype(np.float32)),
        ("0.codes.npy", lambda codes: np.array(codes, object)),
        ("0.residuals.npy", lambda rows: rows[:, :-1]),
        ("1.residuals.npy", lambda rows: np.asfortranarray(rows)),
        ("centroids.npy", lambda rows: rows[:, :-1]),
        ("centroids.npy", lambda rows: np.where(rows > 0, np.nan, rows)),
        ("centroids.npy", lambda rows: rows[:0]),
        ("bucket_cutoffs.npy", lambda values: values[::-1]),
        ("bucket_weights.npy", lambda values: values[:3]),
        ("bucket_weights.npy", lambda values: values * np.inf),
    ],
)
def test_values_that_cannot_be(
    tmp_path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    folder = tmp_path / "foreign"
    write_fast_plaid(folder)
    with_array(folder, name, change)
    with pytest.raises(IndexFormatError, match=name):
        imported(folder, tmp_path / "index")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("doclens.0.json", [1, -1]),
        ("doclens.0.json", {"a": 1}),
        ("doclens.0.json", [1.5]),
        ("metadata.json", []),
        ("metadata.json", {"num_chunks": 0, "nbits": 2}),
        ("metadata.json", {"num_chunks": True, "nbits": 2}),
        ("metadata.json", {"num_chunks": 3, "nbits": 2}),
        ("bucket_weights.npy", {"num_chunks": 2, "nbits": 4}),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, name: str, value: Any) -> None:
    folder = tmp_path / "foreign"
    write_fast_plaid(folder)
    write_json(folder / ("metadata.json" if name.endswith("npy") else name), value)
    with pytest.raises(IndexFormatError, match=r"doclens.2.json|" + name):
        imported(folder, tmp_path / "index")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sizes.compacted.npy", lambda sizes: sizes + 1),
        ("sizes.compacted.npy", lambda sizes: np.append(sizes[:-2], [-1, sizes[-2:].sum() + 1])),
        ("codes.compacted.npy", lambda pids: pids - 1),
        ("codes.compacted.npy", lambda pids: pids << 40),
        ("residuals.compacted.npy", lambda rows: rows[1:]),
    ],
)
def test_values_that_cannot_be_of_warp(
    tmp_path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    folder = tmp_path / "foreign"
    write_xtr_warp_rs(folder)
    with_array(folder, name, change)
    with pytest.raises(IndexFormatError, match=name):
        imported(folder, tmp_path / "index")


def test_an_index_without_documents(tmp_path: Path) -> None:
    write_xtr_warp(tmp_path / "foreign")
    np.save(tmp_path / "foreign" / "deleted_pids.npy", np.arange(60))
    with pytest.raises(IndexFormatError, match="no documents"):
        imported(tmp_path / "foreign", tmp_path / "index")
    assert [each.name for each in tmp_path.iterdir()] == ["foreign"]


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(IndexFormatError, match="not an index of Stanford ColBERT"):
        imported(tmp_path, tmp_path / "index")


def test_targets_are_not_overwritten_by_accident(tmp_path: Path) -> None:
    with imported(INDEX, tmp_path / "index") as index:
        with pytest.raises(IndexExistsError):
            imported(INDEX, tmp_path / "index")
        index.export(tmp_path / "exported", progress=False)
        with pytest.raises(IndexExistsError):
            index.export(tmp_path / "exported", progress=False)
        with pytest.raises(FileNotFoundError):
            index.export(tmp_path / "none" / "exported", progress=False)
        with pytest.raises(ValueError, match="layout must be"):
            index.export(tmp_path / "other", "plaid", progress=False)  # type: ignore[arg-type]
    imported(INDEX, tmp_path / "index", overwrite=True).close()


@pytest.mark.parametrize(
    ("options", "nbits"),
    [({"nbits": 2}, 2), ({"nbits": 3, "codec": "plaid"}, 4), ({"codec": "float16"}, 8)],
)
def test_other_codecs_are_exported_on_request_only(
    tmp_path: Path, options: dict[str, Any], nbits: int
) -> None:
    rng = np.random.default_rng(0)
    documents = rng.standard_normal((50, 6, 64)).astype(np.float32)
    documents /= np.linalg.norm(documents, axis=-1, keepdims=True)
    with Index.build(tmp_path / "index", list(documents), progress=False, **options) as index:
        with pytest.raises(ValueError, match=f"recode=True .* {nbits} bits"):
            index.export(tmp_path / "exported", progress=False)
        assert not (tmp_path / "exported").exists()
        index.export(tmp_path / "exported", recode=True, progress=False)
        expected = index.search(documents[7], 1, exhaustive=True)[0]
    with imported(tmp_path / "exported", tmp_path / "again") as again:
        assert again.info()["nbits"] == nbits
        found = again.search(documents[7], 1, exhaustive=True)[0]
    assert found.id == expected.id == 7
    assert found.score == pytest.approx(expected.score, rel=0.1)


def test_an_emptied_index_is_not_exported(tmp_path: Path) -> None:
    with imported(INDEX, tmp_path / "index") as index:
        index.delete(index.ids)
        for recode in (False, True):
            with pytest.raises(ValueError, match="index: the index is empty; there is nothing to"):
                index.export(tmp_path / "exported", recode=recode, progress=False)
    assert [each.name for each in tmp_path.iterdir()] == ["index"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o700), (0o027, 0o750), (0o022, 0o755)])
def test_the_umask_holds_for_exports(tmp_path: Path, umask: int, mode: int) -> None:
    with imported(INDEX, tmp_path / "index") as index:
        before = os.umask(umask)
        try:
            index.export(tmp_path / "exported", progress=False)
        finally:
            os.umask(before)
    assert stat.S_IMODE((tmp_path / "exported").stat().st_mode) == mode


@pytest.mark.skipif(os.name == "nt", reason="Windows syncs no folders")
def test_exported_files_are_on_disk_before_they_have_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, synced = tmp_path / "exported", set()

    def fsync(descriptor: int) -> None:
        assert not target.exists() or os.path.samestat(os.fstat(descriptor), tmp_path.stat())
        synced.add(os.fstat(descriptor).st_ino)

    with imported(INDEX, tmp_path / "index") as index:
        monkeypatch.setattr(os, "fsync", fsync)
        index.export(target, progress=False)
    assert synced >= {each.stat().st_ino for each in (tmp_path, target, *target.iterdir())}


def test_a_failed_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("colbert_fast.storage.interop.StanfordWriter.append", fail)
    with imported(INDEX, tmp_path / "index") as index, pytest.raises(OSError, match="No space"):
        index.export(tmp_path / "exported", progress=False)
    assert [each.name for each in tmp_path.iterdir()] == ["index"]


def test_dims_that_stanford_cannot_read(tmp_path: Path) -> None:
    vectors = [np.eye(24, dtype=np.float32)[:5]]
    with (
        Index.build(tmp_path / "index", vectors, codec="plaid", progress=False) as index,
        pytest.raises(ValueError, match="multiples of 16 only"),
    ):
        index.export(tmp_path / "exported", progress=False)
