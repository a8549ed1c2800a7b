"""Building on a GPU: what is said without one, and with one the same files as on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from colbert_fast import Index
from colbert_fast.compress import device as devices
from colbert_fast.errors import BackendUnavailable, MissingDependencyError
from colbert_fast.kernels import backend
from support import unit_vectors
from test_cuda import gpu  # noqa: F401

CODECS = ("default", "plaid", "float16")


def documents(rng: np.random.Generator) -> list[np.ndarray]:
    return [unit_vectors(rng, 1 + i % 9, 16).astype(np.float16) for i in range(200)]


def files(path: Path) -> dict[str, bytes]:
    """The arrays of an index; its manifest has a date."""
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*.npy")}


def test_other_devices_are_refused(tmp_path: Path) -> None:
    other: Any = "tpu"
    with pytest.raises(ValueError, match="device must be 'cpu' or 'cuda', got 'tpu'"):
        Index.build(tmp_path / "index", [np.ones((1, 8))], device=other, progress=False)


def test_without_cuda_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_cuda_module", lambda: None)
    read = iter([np.ones((1, 8))])
    with pytest.raises(BackendUnavailable, match="COLBERT_FAST_CUDA=ON"):
        Index.build(tmp_path / "index", read, device="cuda", progress=False)
    assert next(read, None) is not None
    assert not list(tmp_path.iterdir())


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "cuda", lambda: SimpleNamespace(device_count=lambda: 1))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match="encode"):
        devices.check_build_device("cuda")


def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the GPU be the CPU, whose streams do nothing; returns what is placed and sent, later."""
    torch: Any = pytest.importorskip("torch", reason="tensors are torch's")
    from colbert_fast.compress import kmeans

    placed = []

    def place(array: np.ndarray, device: str) -> Any:
        placed.append(device)
        return array if device == "cpu" else torch.tensor(array)

    def send(array: np.ndarray, _: Any) -> Any:
        placed.append("sent")
        return torch.tensor(array)

    for module in (devices, kmeans):
        monkeypatch.setattr(module, "place", place)
    monkeypatch.setattr(devices, "_send", send)
    monkeypatch.setattr(devices, "check_device", lambda _: None)
    for name in ("Stream", "Event"):
        monkeypatch.setattr(torch.cuda, name, getattr(torch.cpu, name))
    return placed


@pytest.mark.parametrize("codec", CODECS)
def test_tensors_go_all_the_way(
    codec: Any, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU: on the CPU, as tensors, which the same code takes to the same files."""
    placed = on_the_cpu(monkeypatch)
    texts = documents(rng)
    for device in ("cpu", "cuda"):
        Index.build(tmp_path / device, texts, codec=codec, device=device, progress=False).close()  # type: ignore[arg-type]
    assert set(placed) == {"cpu", "cuda", "sent"}
    assert files(tmp_path / "cuda") == files(tmp_path / "cpu")


@dataclass(frozen=True)
class _Codec:
    """Of a codec, what compression on a GPU asks for; its one column are the embeddings."""

    centroids: np.ndarray = field(default_factory=lambda: np.zeros((1, 4), np.float32))

    def encode(self, embeddings: Any) -> dict[str, Any]:
        return {"codes": embeddings}


def test_a_chunk_is_under_way_while_the_one_before_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_the_cpu(monkeypatch)
    codec: Any = _Codec()
    read = []

    def chunks() -> Iterator[SimpleNamespace]:
        for number in range(5):
            read.append(number)
            yield SimpleNamespace(embeddings=np.full((3, 4), number, np.float16))

    written = []
    for number, (chunk, columns) in enumerate(devices.encode_each(codec, chunks(), "cuda")):
        np.testing.assert_array_equal(columns["codes"], chunk.embeddings)
        written.append(int(columns["codes"][0, 0]))
        assert len(read) == min(number + 2, 5)
    assert written == [0, 1, 2, 3, 4]
    assert not list(devices.encode_each(codec, (), "cuda"))


def test_a_full_gpu_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    torch: Any = pytest.importorskip("torch", reason="tensors are torch's")

    class Full(_Codec):
        def encode(self, embeddings: Any) -> dict[str, Any]:  # noqa: ARG002
            raise torch.cuda.OutOfMemoryError

    on_the_cpu(monkeypatch)
    codec: Any = Full()
    chunk = SimpleNamespace(embeddings=np.zeros((3, 4), np.float16))
    with pytest.raises(MemoryError, match=r"24 bytes .* GPU: build with device='cpu', or free"):
        list(devices.encode_each(codec, [chunk], "cuda"))


@pytest.mark.parametrize("codec", CODECS)
def test_the_same_files_on_a_gpu(
    codec: Any,
    tmp_path: Path,
    rng: np.random.Generator,
    gpu: Any,  # noqa: F811, ARG001
) -> None:
    """Few centroids, of which the CPU looks at all too."""
    texts = documents(rng)
    for device in ("cpu", "cuda"):
        Index.build(tmp_path / device, texts, codec=codec, device=device, progress=False).close()  # type: ignore[arg-type]
    assert files(tmp_path / "cuda") == files(tmp_path / "cpu")
