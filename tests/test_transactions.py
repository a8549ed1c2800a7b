"""An index appears complete or not at all, and what was there stays until then."""

from __future__ import annotations

import errno
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

from colbert_fast.errors import IndexBusyError, IndexExistsError, IndexFormatError
from colbert_fast.index import Index
from colbert_fast.indexing import assembly, build
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
    (assembly, "write_lists"),
    (DocumentWriter, "add"),
    (DocumentWriter, "close"),
    (transactions, "sync_files"),
    (transactions, "record_files"),
    (build.Manifest, "write"),
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


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_ctrl_c_right_after_a_rename(
    tmp_path: Path, documents: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """Of a replacement: both folders are moved, then the manifest over the old one."""
    before = files(make(tmp_path / "a", documents[:20]).path)
    calls = 0

    def interrupted(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Path, target: Path) -> Any:
            nonlocal calls
            moved = method(path, target)
            if ".building" not in str(target):
                calls += 1
                if calls == nth:
                    raise KeyboardInterrupt
            return moved

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted(Path.rename))
        patch.setattr(Path, "replace", interrupted(Path.replace))
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "a", documents, overwrite=True)
    index = Index.open(tmp_path / "a")
    index.verify()
    assert len(index) == (120 if nth == 3 else 20)
    assert nth == 3 or files(tmp_path / "a") == before
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    assert {each.name.partition("-")[0] for each in (tmp_path / "a").iterdir()} == {
        "codec", "manifest.json", "segment", "writer.lock",
    }  # fmt: skip


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


def test_old_files_that_cannot_be_removed_are_left(
    tmp_path: Path,
    documents: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "in use", str(path))

    make(tmp_path / "a", documents[:20])
    with monkeypatch.context() as patch:
        patch.setattr(transactions, "_remove", refuse)
        make(tmp_path / "a", documents, overwrite=True)
    assert "is of an earlier generation and was not removed" in caplog.text
    assert len(list((tmp_path / "a").glob("segment-*"))) == 2
    index = Index.open(tmp_path / "a")
    index.verify()
    index.delete([0])
    assert len(list((tmp_path / "a").glob("segment-*"))) == 1
    assert len(index) == 119


def run(code: str, path: Path) -> subprocess.Popen[str]:
    script = textwrap.dedent(
        """
        import signal, sys, time
        import numpy as np
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" ignores it
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
    assert [each.name for each in tmp_path.iterdir()] == ["a.building"]
    building = next(tmp_path.iterdir())
    with pytest.raises(IndexFormatError, match="unfinished build"):
        Index.open(building)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
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
    out, err = process.communicate(timeout=120)
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


def other_manifest(path: Path) -> None:
    path.mkdir()
    (path / "manifest.json").write_text('{"name": "My web app", "icons": []}')


def dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("put", [plain_file, full_folder, other_manifest, dangling_link])
def test_overwrite_replaces_nothing_but_an_index(
    tmp_path: Path, documents: list[np.ndarray], put: Callable[[Path], None]
) -> None:
    put(tmp_path / "a")
    with pytest.raises(IndexExistsError, match="already exists"):
        make(tmp_path / "a", documents)
    message = "is not a colbert_fast index|is a symbolic link, .* leads to, 'nowhere'"
    with pytest.raises(IndexExistsError, match=message):
        make(tmp_path / "a", documents, overwrite=True)
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_damaged_index_may_be_overwritten(tmp_path: Path, documents: list[np.ndarray]) -> None:
    manifest = make(tmp_path / "a", documents[:20]).path / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:60])
    make(tmp_path / "a", documents, overwrite=True).verify()


def test_an_empty_folder_may_be_overwritten(tmp_path: Path, documents: list[np.ndarray]) -> None:
    (tmp_path / "a").mkdir()
    make(tmp_path / "a", documents, overwrite=True).verify()


def test_missing_parent_and_reserved_names(tmp_path: Path, documents: list[np.ndarray]) -> None:
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist; create it first"):
        make(tmp_path / "no" / "a", documents)
    with pytest.raises(ValueError, match="kept for unfinished builds"):
        make(tmp_path / "a.building", documents)


def test_an_index_built_meanwhile_is_not_replaced(
    tmp_path: Path, documents: list[np.ndarray]
) -> None:
    def source() -> Iterator[np.ndarray]:
        yield from documents
        make(tmp_path / "b", documents[:20])
        (tmp_path / "b").rename(tmp_path / "a")

    with pytest.raises(IndexExistsError):
        make(tmp_path / "a", source())
    assert len(Index.open(tmp_path / "a")) == 20


def test_what_a_killed_build_left_is_cleared(tmp_path: Path, documents: list[np.ndarray]) -> None:
    (tmp_path / "a.building" / "segment-000000").mkdir(parents=True)
    (tmp_path / "a.building" / "spill.tmp").write_bytes(b"x")
    make(tmp_path / "a", documents[:20]).verify()
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    assert not (tmp_path / "a" / "spill.tmp").exists()


def test_two_builds_of_one_index(tmp_path: Path, documents: list[np.ndarray]) -> None:
    def source() -> Iterator[np.ndarray]:
        yield from documents
        with pytest.raises(IndexBusyError, match=r"another build for .*a' is running"):
            make(tmp_path / "a", documents[:20])

    assert len(make(tmp_path / "a", source())) == 120
