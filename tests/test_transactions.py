"""An index appears complete or not at all, and what was there stays until then."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colbert_fast import build
from colbert_fast.errors import IndexExistsError, IndexFormatError
from colbert_fast.index import Index
from colbert_fast.storage import segments, transactions
from colbert_fast.storage.documents import DocumentWriter
from synthetic import clustered, files, make


@pytest.fixture
def documents(rng: np.random.Generator) -> list[np.ndarray]:
    return clustered(rng, 120)


def failing(after: int, error: BaseException) -> Iterator[np.ndarray]:
    yield from clustered(np.random.default_rng(0), after)
    raise error


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


STAGES: list[tuple[Any, str]] = [
    (build.Spill, "append"),
    (build.Spill, "sample"),
    (build, "fit_centroids"),
    (segments.NpyWriter, "append"),
    (segments.NpyWriter, "close"),
    (segments.SegmentWriter, "write_lists"),
    (DocumentWriter, "add"),
    (DocumentWriter, "close"),
    (build, "record_files"),
    (build.Manifest, "write"),
    (transactions, "_sync_tree"),
    (transactions, "_move_into_place"),
]


@pytest.mark.parametrize(("home", "name"), STAGES, ids=[name for _, name in STAGES])
@pytest.mark.parametrize("kind", ["disk", "interrupt"])
def test_a_failure_at_any_stage_leaves_the_old_index_alone(
    tmp_path: Path,
    documents: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    home: Any,
    name: str,
    kind: str,
) -> None:
    before = files(make(tmp_path / "a", documents[:20], num_centroids=4).path)
    monkeypatch.setattr(home, name, full_disk if kind == "disk" else interrupt)
    error, message = (OSError, "No space left") if kind == "disk" else (KeyboardInterrupt, None)
    with pytest.raises(error, match=message):
        make(tmp_path / "a", documents, overwrite=True, num_centroids=4)
    with pytest.raises(error, match=message):
        make(tmp_path / "b", documents, num_centroids=4)
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    assert files(tmp_path / "a") == before
    Index.open(tmp_path / "a").verify()


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("error", [LookupError(), KeyboardInterrupt(), SystemExit()])
def test_a_source_that_fails(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        make(tmp_path / "a", failing(30, error))
    assert list(tmp_path.iterdir()) == []


def test_the_old_index_returns_if_the_new_one_cannot_be_moved(
    tmp_path: Path, documents: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(make(tmp_path / "a", documents[:20]).path)
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if ".building-" in path.name:
            raise PermissionError("no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        make(tmp_path / "a", documents, overwrite=True)
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    assert files(tmp_path / "a") == before


@pytest.mark.parametrize("name", ["a", "a[0]"])
@pytest.mark.parametrize("nth", [1, 2])
def test_ctrl_c_right_after_a_rename(
    tmp_path: Path,
    documents: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    nth: int,
    name: str,
) -> None:
    make(tmp_path / name, documents[:20])
    rename, calls = Path.rename, 0

    def interrupted(path: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        moved = rename(path, target)
        if calls == nth:
            raise KeyboardInterrupt
        return moved

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / name, documents, overwrite=True)
    index = Index.open(tmp_path / name)
    index.verify()
    assert len(index) == (20 if nth == 1 else 120)
    left = [each.name for each in tmp_path.iterdir() if each.name != name]
    assert [each.startswith(f"{name}.old-") for each in left] == [True] * (nth - 1)
    make(tmp_path / name, documents[:20], overwrite=True)
    assert ("is left from an index that was replaced" in caplog.text) == (nth == 2)


def test_ctrl_c_right_after_the_only_rename(
    tmp_path: Path, documents: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        rename(path, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "a", documents)
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    Index.open(tmp_path / "a").verify()


def test_ctrl_c_while_the_old_index_is_deleted(
    tmp_path: Path, documents: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "a", documents[:20])
    with monkeypatch.context() as patch:
        patch.setattr(transactions, "_sync_folder", lambda _: None)
        patch.setattr(transactions.shutil, "rmtree", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "a", documents, overwrite=True)
    assert len(Index.open(tmp_path / "a")) == 120


def test_an_index_lost_in_a_replacement_is_named(
    tmp_path: Path, documents: list[np.ndarray]
) -> None:
    make(tmp_path / "a", documents[:20]).close()
    (tmp_path / "a").rename(tmp_path / "a.old-0123")
    with pytest.raises(IndexFormatError, match=r"not an index; .*a\.old-0123' .* rename it back"):
        Index.open(tmp_path / "a")


def run(code: str, path: Path) -> subprocess.Popen[str]:
    script = textwrap.dedent(
        """
        import sys, time
        import numpy as np
        from colbert_fast import Index
        def documents():
            rng = np.random.default_rng(0)
            for i in range(300):
                yield rng.standard_normal((200, 64), dtype=np.float32)
        """
    ) + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c(tmp_path: Path) -> None:
    process = run(
        """
        def endless():
            yield from documents()
            print("reading", flush=True)
            while True:
                time.sleep(0.01)
                yield np.ones((1, 64))
        Index.build(sys.argv[1], endless(), progress=False)
        """,
        tmp_path / "a",
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "reading\n"
    assert [each.name.startswith("a.building-") for each in tmp_path.iterdir()] == [True]
    building = next(tmp_path.iterdir())
    with pytest.raises(IndexFormatError, match="unfinished build"):
        Index.open(building)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode not in (0, None)
    assert "KeyboardInterrupt" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE as Linux has it")
def test_files_that_may_not_grow(tmp_path: Path) -> None:
    process = run(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            Index.build(sys.argv[1], documents(), progress=False)
        except OSError as error:
            print(error)
        """,
        tmp_path / "a",
    )
    out, err = process.communicate(timeout=60)
    assert "File too large" in out, err
    assert "spill.tmp" in out
    assert list(tmp_path.iterdir()) == []


# ---- the place


def test_an_existing_path_is_refused_before_any_work(
    tmp_path: Path, documents: list[np.ndarray]
) -> None:
    make(tmp_path / "a", documents[:20])
    before = files(tmp_path / "a")
    with pytest.raises(IndexExistsError, match="already exists; pass overwrite=True"):
        make(tmp_path / "a", failing(0, AssertionError("read a document")))
    assert files(tmp_path / "a") == before
    index = make(tmp_path / "a", documents, overwrite=True)
    assert len(index) == 120
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(os.name == "nt", reason="an open index cannot be moved on Windows")
def test_a_reader_keeps_the_index_it_opened(tmp_path: Path, documents: list[np.ndarray]) -> None:
    old = make(tmp_path / "a", documents[:20])
    expected = old.search(documents[3], k=5)
    make(tmp_path / "a", documents, overwrite=True)
    assert old.search(documents[3], k=5) == expected
    assert len(Index.open(tmp_path / "a")) == 120


def plain_file(path: Path) -> None:
    path.write_text("x")


def full_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("x")


def dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("put", [plain_file, full_folder, dangling_link])
def test_overwrite_replaces_nothing_but_an_index(
    tmp_path: Path, documents: list[np.ndarray], put: Callable[[Path], None]
) -> None:
    put(tmp_path / "a")
    with pytest.raises(IndexExistsError, match="already exists"):
        make(tmp_path / "a", documents)
    with pytest.raises(IndexExistsError, match="is not a colbert_fast index"):
        make(tmp_path / "a", documents, overwrite=True)
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_an_empty_folder_may_be_overwritten(tmp_path: Path, documents: list[np.ndarray]) -> None:
    (tmp_path / "a").mkdir()
    make(tmp_path / "a", documents, overwrite=True).verify()


def test_missing_parent_and_reserved_names(tmp_path: Path, documents: list[np.ndarray]) -> None:
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist; create it first"):
        make(tmp_path / "no" / "a", documents)
    with pytest.raises(ValueError, match="kept for unfinished builds"):
        make(tmp_path / "a.building-1", documents)


def test_an_index_built_meanwhile_is_not_replaced(
    tmp_path: Path, documents: list[np.ndarray]
) -> None:
    def source() -> Iterator[np.ndarray]:
        yield from documents
        make(tmp_path / "a", documents[:20])

    with pytest.raises(IndexExistsError):
        make(tmp_path / "a", source())
    assert len(Index.open(tmp_path / "a")) == 20


def test_leftovers_are_mentioned(
    tmp_path: Path, documents: list[np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.building-0000").mkdir()
    with caplog.at_level(logging.WARNING):
        make(tmp_path / "a", documents[:20])
    assert "a.building-0000 is left from an unfinished build" in caplog.text
