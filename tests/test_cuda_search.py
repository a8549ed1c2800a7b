"""Search on a GPU: what is said without one, and the CPU's results where there is one."""

from __future__ import annotations

import contextlib
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from colbert_fast import Index
from colbert_fast.errors import BackendUnavailable, IndexFormatError
from colbert_fast.kernels import backend, ops
from colbert_fast.kernels.cuda import CentroidBytes
from colbert_fast.search import device
from colbert_fast.search.hybrid import find
from colbert_fast.search.params import SearchParams
from colbert_fast.search.snapshot import Snapshot
from colbert_fast.storage.codes import code_bits
from support import same_bits, unit_vectors
from test_cuda import fake, gpu, needs_build  # noqa: F401 (a fixture)

DIM, N_DOCS = 32, 600
K = 40


def documents(seed: int, n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    topics = unit_vectors(rng, 30, DIM)
    lengths = rng.integers(1, 12, n)
    noise = rng.standard_normal((n, 12, DIM)).astype(np.float32) / 8
    return [topics[rng.integers(0, 30, m)] + noise[i, :m] for i, m in enumerate(lengths)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Indexes of one segment, one for each kind of codec, and one of two segments."""
    path: Path = tmp_path_factory.mktemp("indexes")
    options: Any = {"num_centroids": K, "progress": False}
    for name, codec in {"1": {"nbits": 1}, "2": {"nbits": 2}, "4": {"nbits": 4}}.items():
        Index.build(path / name, documents(1, N_DOCS), **codec, **options)
    Index.build(path / "plaid", documents(1, N_DOCS), nbits=8, codec="plaid", **options)
    Index.build(path / "float16", documents(1, N_DOCS), codec="float16", **options)
    grown = Index.build(path / "two", documents(1, N_DOCS), nbits=2, **options)
    grown.add(documents(2, 50), progress=False)
    grown.delete([3, 610])
    return path


# -- without a GPU -----------------------------------------------------------------------------


def test_a_device_is_cpu_or_cuda(folder: Path) -> None:
    for name in ("gpu", "cuda:x", "cuda:", "mps"):
        with pytest.raises(ValueError, match=f"device must be 'cpu', .* got '{name}'"):
            Index.open(folder / "2", device=name)


def test_a_build_without_cuda_is_told_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_cuda_module", lambda: None)
    with pytest.raises(BackendUnavailable, match="COLBERT_FAST_CUDA=ON"):
        Index.open(folder / "2", device="cuda")


def test_a_gpu_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="tensors on a GPU are torch's")
    module = SimpleNamespace(release="13.0", device_count=lambda: 1, can_run=lambda _: True)
    monkeypatch.setattr(backend, "_cuda_module", lambda: module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(BackendUnavailable, match="'cuda:7': this machine has 1 CUDA"):
        Index.open(folder / "2", device="cuda:7")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailable, match="this torch sees no CUDA"):
        Index.open(folder / "2", device="cuda:0")


def test_an_index_is_copied_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    def make(_: Snapshot) -> object:
        time.sleep(0.05)
        made.append(object())
        return made[0]

    monkeypatch.setattr(Snapshot, "_make_searcher", make)
    snapshot = Snapshot.open(folder / "2")
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: snapshot.searcher, range(8))) == {made[0]}
    assert len(made) == 1


def test_a_gpu_that_is_too_old(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="tensors on a GPU are torch's")
    able = [False, True]
    module = SimpleNamespace(
        release="13.0",
        device_count=lambda: len(able),
        can_run=able.__getitem__,
        device_name=lambda _: "New",
    )
    monkeypatch.setattr(backend, "_cuda_module", lambda: module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert backend.backend_info()["cuda_devices"] == ["cuda:1 New"]
    with pytest.raises(BackendUnavailable, match=r"8\.0 .*, which cuda:1 has, but not cuda:0"):
        Index.open(folder / "2", device="cuda:0")
    with pytest.raises(BackendUnavailable, match="but not cuda:0"):
        ops.cuda.run("maxsim", fake(2, 8, index=0))
    able[:] = [False]
    assert backend.backend_info()["cuda_devices"] == []
    with pytest.raises(BackendUnavailable, match="which none here has"):
        Index.open(folder / "2", device="cuda")


@pytest.mark.parametrize("name", ["2", "two"])
def test_segments_become_one_collection(folder: Path, name: str) -> None:
    snapshot = Snapshot.open(folder / name)
    k, total = len(snapshot.codec.centroids), int(snapshot.doclens.sum())
    arrays = device._collection(snapshot.segments, snapshot.codec)
    codes = np.concatenate([each.codes[:] for each in snapshot.segments])
    assert (ops.unpack_codes(arrays["codes"], code_bits(k), 0, total) == codes).all()
    lists = ops.build_lists(codes, snapshot.doclens, k)
    for field, expected in lists._asdict().items():
        assert same_bits(np.asarray(arrays[field]), np.asarray(expected)), field
    ends = np.cumsum(snapshot.doclens)
    assert (arrays["first"] == ends - snapshot.doclens).all()
    assert sum(map(len, arrays["residuals"])) == total
    assert arrays["embeddings"] is None


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> device.DeviceSearcher:
    """A searcher that checks what it gets, and could do no more."""
    module = SimpleNamespace(Searcher=lambda *_: None)
    monkeypatch.setattr(device.backend, "cuda", lambda: module)
    monkeypatch.setattr(device, "_free_bytes", lambda _: 1000)
    arrays = {
        "centroids": fake(K, DIM),
        "doclens": np.ones(5, np.int32),
        "residuals": np.zeros((5, 8), np.uint8),
    }
    return device.DeviceSearcher(arrays, np.zeros(16, np.float32))


def test_what_a_search_refuses(without_kernels: device.DeviceSearcher) -> None:
    query, params = np.ones((2, DIM), np.float32), SearchParams.resolve(3)
    with pytest.raises(ValueError, match='mode "plaid" runs on the CPU only'):
        without_kernels.search([query], SearchParams.resolve(3, mode="plaid"))
    with pytest.raises(ValueError, match="query 1 has no tokens"):
        without_kernels.search([query, query[:0]], params)
    with pytest.raises(ValueError, match=r"finite and at most 1e\+15"):
        without_kernels.search([query * np.float32(np.nan)], params)
    with pytest.raises(ValueError, match=r"`candidates` must lie in \[0, 5\), got 5"):
        without_kernels.search([query], params, candidates=[np.array([0, 5])])
    ids, scores = without_kernels.search([query], params, subset=np.zeros(5, np.bool_))
    assert (ids == -1).all()
    assert (scores == -np.inf).all()


def test_long_queries_go_in_smaller_blocks(without_kernels: device.DeviceSearcher) -> None:
    without_kernels._core = SimpleNamespace(workspace=lambda *_: 0)
    batch = [np.ones((1, DIM), np.float32)] * 300 + [np.ones((9000, DIM), np.float32)]
    blocks = [*without_kernels._blocks(batch, 10, (2, 4, "filter"))]
    assert [each.start for each in blocks] == [0, 232]  # of 282 tiles each
    assert [each.stop - each.start for each in blocks] == [232, 232]
    assert len([*without_kernels._blocks(batch[:300], 10, (2, 4, "filter"))]) == 2
    without_kernels._core = SimpleNamespace(workspace=lambda n, *_: 10 * n)
    blocks = [*without_kernels._blocks(batch[:300], 10, (2, 4, "filter"))]
    assert max(each.stop - each.start for each in blocks) == 32  # half of what is free


def test_small_collections_are_scanned(without_kernels: device.DeviceSearcher) -> None:
    def kind(allowed: int, *, given: bool = False, **options: Any) -> str:
        params = SearchParams.resolve(3, **options)
        return without_kernels._shape(params, allowed, given=given)[2]

    assert kind(400, ndocs=100) == "scan"
    assert kind(401, ndocs=100) == "filter"
    assert kind(401, ndocs=100, given=True) == "scan"
    assert kind(9, exhaustive=True) == "exhaustive"
    without_kernels._int8 = False
    assert kind(400, ndocs=100) == "exhaustive"
    assert kind(401, ndocs=100) == "filter"


class Recorder:
    """In place of `_cuda.Searcher`: keeps what it gets, and finds document 7 for every query."""

    def __init__(self, arrays: dict[str, Any], weights: np.ndarray) -> None:
        self.arrays, self.weights = arrays, weights
        self.calls: list[tuple[Any, ...]] = []
        self.damaged = 0

    def workspace(self, n_queries: int, *_: Any) -> int:
        return 100 * n_queries

    def search(self, *arguments: Any) -> None:
        *call, ids, scores, damaged, _ = arguments
        self.calls.append(tuple(call))
        ids.fill_(7)
        scores.fill_(0.5)
        damaged.fill_(self.damaged)


@pytest.fixture
def recorded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that opens an index on a device that is the CPU."""
    torch: Any = pytest.importorskip("torch", reason="tensors on a GPU are torch's")
    module = SimpleNamespace(Searcher=Recorder, list_padding=8)
    patched = {
        "device": lambda _: contextlib.nullcontext(),
        "mem_get_info": lambda _: (10**9, 10**9),
        "memory_allocated": lambda _: 0,
        "memory_reserved": lambda _: 0,
        "synchronize": lambda _: None,
        "current_stream": lambda: SimpleNamespace(cuda_stream=0),
    }
    for name, function in patched.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(device, "check_device", lambda _: torch.device("cpu"))
    monkeypatch.setattr(device.backend, "cuda", lambda: module)
    monkeypatch.setattr(device.cuda, "quantise_centroids", lambda c: CentroidBytes(c, c, c))
    return lambda name: Snapshot.open(folder / name, "cuda")


@pytest.mark.parametrize("name", ["2", "two", "float16"])
def test_what_reaches_the_device(recorded: Any, name: str) -> None:
    snapshot = recorded(name)
    core = snapshot.searcher._core
    arrays = {key: None if x is None else x.numpy() for key, x in core.arrays.items()}
    for column in ("residuals", "scales", "embeddings"):
        parts = [each.columns[column] for each in snapshot.segments if column in each.columns]
        assert same_bits(arrays[column], np.concatenate(parts)) if parts else not arrays[column]
    assert same_bits(arrays["doclens"], snapshot.doclens)
    assert same_bits(arrays["rows"], snapshot.codec.centroids)
    assert (arrays["data"][-8:] == 0).all()
    assert len(arrays["data"]) == arrays["offsets"][-1] + 8


def test_queries_are_padded_and_go_in_blocks(
    recorded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    searcher, batch = recorded("2").searcher, queries()[:3]
    params = SearchParams.resolve(2, ndocs=20, nprobe=99)
    ids, scores = searcher.search(batch, params)
    assert ids.shape == scores.shape == (3, 2)
    assert (ids == 7).all()
    rows, *rest, workspace = searcher._core.calls.pop()
    assert rest == [K, 20, "filter", None, None, None]
    assert len(workspace) == 300
    assert rows.shape == (3, 64, DIM)
    for row, query in zip(rows.numpy(), batch, strict=True):
        assert same_bits(row[: len(query)], query)
        assert (row[len(query) :] == 0).all()
    monkeypatch.setattr(device, "_WORKSPACE", 250)
    given = [np.array(each, np.int64) for each in ([5, 6], [], [7])]
    mask = np.arange(N_DOCS) % 2 == 0
    searcher.search(batch, params, subset=mask, candidates=given)
    calls = searcher._core.calls
    assert [len(call[0]) for call in calls] == [2, 1]
    assert [call[3] for call in calls] == ["scan", "scan"]
    assert (calls[0][4].numpy() == mask).all()
    assert [call[5].tolist() for call in calls] == [[5, 6], [7]]
    assert [call[6].tolist() for call in calls] == [[0, 2, 2], [0, 1]]


def test_a_damaged_list_is_told(recorded: Any) -> None:
    snapshot = recorded("2")
    snapshot.searcher._core.damaged = 4
    with pytest.raises(IndexFormatError, match="segment-000000: list 3 is corrupt; verify"):
        find(snapshot, queries(), SearchParams.resolve(2), texts=None, candidates=None, subset=None)


def test_an_index_that_does_not_fit(recorded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 2000))
    with pytest.raises(MemoryError, match=r"needs [\d,]+ bytes on cpu, or .* 1,000 are free"):
        _ = recorded("2").searcher


@pytest.mark.parametrize(("name", "vectors"), [("two", "residuals"), ("float16", "embeddings")])
def test_vectors_stay_on_the_host_where_they_do_not_fit(
    recorded: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    vectors: str,
) -> None:
    def searcher(free: int) -> Any:
        monkeypatch.setattr(device, "_free_bytes", lambda _: free)
        return recorded(name).searcher

    with pytest.raises(MemoryError) as caught:
        searcher(0)
    whole, rest = (int(n.replace(",", "")) for n in re.findall(r"[\d,]{4,}", str(caught.value)))
    with pytest.raises(MemoryError, match=f"with its {vectors} on the host"):
        searcher(rest - 1)
    for free in (rest, whole + whole // 8 - 1):
        snapshot, kept = recorded(name), searcher(free)._core.arrays[vectors]
        column = np.concatenate([each.columns[vectors] for each in snapshot.segments])
        assert isinstance(kept, np.ndarray)
        assert same_bits(kept, column)
        assert column.nbytes == whole - rest
        assert f"{vectors} stay in the host's memory" in caplog.records.pop().message
    assert not isinstance(searcher(whole + whole // 8)._core.arrays[vectors], np.ndarray)
    assert not caplog.records


def arrays_of(nbits: int = 2, **change: Any) -> dict[str, Any]:
    n = 9
    arrays = {
        "centroids": fake(K, DIM),
        "rows": fake(K, DIM, dtype=np.uint8),
        "scale": fake(K),
        "longest": fake(1),
        "first": fake(5, dtype=np.int64),
        "doclens": fake(5, dtype=np.int32),
        "codes": fake((n * code_bits(K) + 7) // 8 + ops.CODE_PADDING, dtype=np.uint8),
        "residuals": fake(n, DIM * nbits // 8, dtype=np.uint8),
        "scales": None,
        "inverse_norms": None,
        "embeddings": None,
        "counts": fake(K, dtype=np.int32),
        "offsets": fake(K + 1, dtype=np.int64),
        "data": fake(8, dtype=np.uint8),
    }
    return arrays | change


@needs_build
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("rows", fake(K, 8, dtype=np.uint8), r"`rows` must be of shape \(40, 32\)"),
        ("codes", fake(9, dtype=np.uint8), "`codes` must be of shape"),
        ("first", fake(4, dtype=np.int64), "`first` must be of shape"),
        ("counts", fake(K, dtype=np.int64), "`counts` must be int32"),
        ("scales", fake(8, dtype=np.uint8), "`scales` must be of shape"),
        ("data", fake(7, dtype=np.uint8), "`data` must end with 8 bytes of padding"),
        ("scale", fake(K, index=1), "`scale` must be on cuda:0"),
    ],
)
def test_wrong_arrays_are_named(name: str, value: Any, says: str) -> None:
    from colbert_fast import _cuda

    with pytest.raises((TypeError, ValueError), match=says):
        _cuda.Searcher(arrays_of(**{name: value}), np.zeros(16, np.float32))


@needs_build
@pytest.mark.skipif(bool(backend.backend_info()["cuda_devices"]), reason="a GPU pins memory")
def test_memory_that_cannot_be_pinned() -> None:
    from colbert_fast import _cuda

    arrays = arrays_of(residuals=np.zeros((9, 8), np.uint8))
    with pytest.raises(MemoryError, match="the host cannot pin 72 bytes of residuals: "):
        _cuda.Searcher(arrays, np.zeros(16, np.float32))


@needs_build
def test_wrong_shapes_of_searches_are_named() -> None:
    from colbert_fast import _cuda

    searcher = _cuda.Searcher(arrays_of(), np.zeros(16, np.float32))
    good: dict[str, Any] = {
        "n_queries": 2,
        "nq": 32,
        "k": 3,
        "nprobe": 2,
        "ndocs": 4,
        "kind": "filter",
    }
    one, many = searcher.workspace(**good), searcher.workspace(**{**good, "n_queries": 8})
    assert 0 < one < many < 4 * one
    for change, says in [
        ({"k": 4097}, "`k` must be from 1 to 4096 on a CUDA device, got 4097"),
        ({"nprobe": K + 1}, "`nprobe` must be from 1 to 40"),
        ({"nq": 33}, "multiple of 32"),
        ({"ndocs": 0}, "`ndocs` must be at least 1"),
        ({"kind": "all"}, "`kind` must be 'filter'"),
    ]:
        with pytest.raises(ValueError, match=says):
            searcher.workspace(**{**good, **change})
    eight = _cuda.Searcher(arrays_of(nbits=8), np.zeros(256, np.float32))
    with pytest.raises(ValueError, match="8 bits"):
        eight.workspace(**{**good, "kind": "scan"})


@needs_build
def test_queries_lie_on_the_index_device() -> None:
    from colbert_fast import _cuda

    searcher, rest = _cuda.Searcher(arrays_of(), np.zeros(16, np.float32)), [None] * 7
    with pytest.raises(TypeError, match="`queries` must be on cuda:0, got an array on cuda:1"):
        searcher.search(fake(1, 32, DIM, index=1), 2, 4, "filter", *rest, stream=0)


# -- with a GPU --------------------------------------------------------------------------------

NAMES = ["1", "2", "4", "plaid", "float16", "two"]


def queries() -> list[np.ndarray]:
    lengths = [3, 32, 33, 1]
    return [unit_vectors(np.random.default_rng(seed), n, DIM) for seed, n in enumerate(lengths)]


def pairs(hits: list[list[Any]]) -> list[list[tuple[Any, float]]]:
    return [[(hit.id, hit.score) for hit in each] for each in hits]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", NAMES)
def test_exhaustive_search_is_the_cpus(folder: Path, name: str) -> None:
    ours, theirs = Index.open(folder / name, device="cuda"), Index.open(folder / name)
    for options in ({}, {"subset": range(0, N_DOCS, 5)}):
        found = ours.search(queries(), 20, exhaustive=True, **options)
        assert pairs(found) == pairs(theirs.search(queries(), 20, exhaustive=True, **options))
    given = [range(start, start + 20) for start in range(4, 8)]
    assert pairs(ours.rerank(queries(), given)) == pairs(theirs.rerank(queries(), given))


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("ndocs", [100, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_default_search_finds_the_best(folder: Path, name: str, ndocs: int) -> None:
    """All documents are kept, or a sixth by their centroids, which takes a query of many tokens."""
    batch = queries() if ndocs >= N_DOCS else queries()[1:3]
    index = Index.open(folder / name, device="cuda")
    truth = pairs(index.search(batch, N_DOCS, exhaustive=True))
    found = pairs(index.search(batch, 10, ndocs=ndocs, nprobe=12))
    for ours, all_ in zip(found, truth, strict=True):
        assert set(ours) <= set(all_)
        assert [score for _, score in ours] == sorted((score for _, score in ours), reverse=True)
        assert len(set(ours) & set(all_[:10])) >= 9


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", ["two", "float16", "4"])
def test_vectors_on_the_host_give_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole = Index.open(folder / name, device="cuda")
    monkeypatch.setattr(device, "_ROOM", 1e-9)
    with Index.open(folder / name, device="cuda") as split:
        for options in ({"ndocs": 100}, {"exhaustive": True}):
            found = pairs(split.search(queries(), 10, **options))
            assert found == pairs(whole.search(queries(), 10, **options))


@pytest.mark.usefixtures("gpu")
def test_large_batches_go_in_blocks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index.open(folder / "2", device="cuda")
    many = queries() * 5
    expected = pairs(index.search(many, 5, ndocs=50))
    monkeypatch.setattr(device, "_WORKSPACE", 1)
    assert pairs(index.search(many, 5, ndocs=50)) == expected


@pytest.mark.usefixtures("gpu")
def test_a_search_can_be_captured(folder: Path) -> None:
    import torch

    searcher: Any = Snapshot.open(folder / "2", "cuda").searcher
    rows = torch.zeros(1, 32, DIM, device="cuda")
    out = (torch.empty(1, 5, dtype=torch.int64, device="cuda"), torch.empty(1, 5, device="cuda"))
    damaged = torch.zeros(1, dtype=torch.int32, device="cuda")
    size = searcher._core.workspace(1, 32, 5, 4, 50, "filter")
    workspace = torch.empty(size, dtype=torch.uint8, device="cuda")

    def search() -> None:
        stream = torch.cuda.current_stream().cuda_stream
        kind = (4, 50, "filter", None, None, None)
        searcher._core.search(rows, *kind, workspace, *out, damaged, stream)

    search()  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        search()
    for query in queries()[:2]:
        rows.zero_()
        rows[0, : len(query)] = torch.from_numpy(query)
        graph.replay()
        found = [each.clone() for each in out]
        search()
        assert all(map(torch.equal, found, out))
