"""Other ways to compute the default model on a CPU: the baselines of bench_encode.py.

Each is a function from a float32 model and a scratch folder to a runner, as `make_runner` gives:
(texts, length) ids and mask to (texts, length, dim) unit rows. One whose package is missing skips.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from colbert_fast.model import ColBERT
from colbert_fast.model.device import multiplies_bfloat16

__all__ = ["BASELINES"]

Runner = Callable[[np.ndarray, np.ndarray], np.ndarray]


def by_module(module: Any, *, bfloat16: bool = False) -> Runner:
    """A torch module as it is, under autocast for bfloat16."""
    if bfloat16 and not multiplies_bfloat16(torch.device("cpu")):
        pytest.skip("bfloat16 is not in this CPU's hardware")

    # not inference mode: modules that are compiled with frozen weights refuse its tensors
    @torch.no_grad()
    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return module(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()

    return run


def transformers(model: ColBERT, _: Path, *, bfloat16: bool = False) -> Runner:
    return by_module(model, bfloat16=bfloat16)


def torch_compile(model: ColBERT, _: Path, *, bfloat16: bool = False) -> Runner:
    return by_module(torch.compile(model, dynamic=True), bfloat16=bfloat16)


def torch_int8(model: ColBERT, _: Path) -> Runner:
    """Deprecated in torch; the only int8 that comes with it."""
    quantise = torch.ao.quantization.quantize_dynamic
    return by_module(quantise(model, {torch.nn.Linear}, dtype=torch.qint8))


def onnxruntime(model: ColBERT, folder: Path, *, int8: bool = False) -> Runner:
    """int8: weights per output channel, activations per call, by its own dynamic quantisation."""
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path, size = folder / "model.onnx", torch.export.Dim.DYNAMIC
    inputs = (torch.zeros(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64))
    names, sizes = ["input_ids", "attention_mask"], {0: size, 1: size}
    torch.onnx.export(
        model, inputs, path, input_names=names, dynamic_shapes=(sizes, sizes), dynamo=True
    )
    if int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        whole, path = path, folder / "model-int8.onnx"
        quantize_dynamic(
            whole,
            path,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(None, dict(zip(names, (ids, mask), strict=True)))[0]


# Name to how it is made and the cosine to float32 that its worst row must have.
BASELINES: dict[str, tuple[Callable[[ColBERT, Path], Runner], float]] = {
    "transformers-float32": (transformers, 0.99999),
    "transformers-bfloat16": (partial(transformers, bfloat16=True), 0.99),
    "compile-float32": (torch_compile, 0.99999),
    "compile-bfloat16": (partial(torch_compile, bfloat16=True), 0.99),
    "torch-int8": (torch_int8, 0.3),
    "onnxruntime-float32": (onnxruntime, 0.99999),
    "onnxruntime-int8": (partial(onnxruntime, int8=True), 0.8),
}
