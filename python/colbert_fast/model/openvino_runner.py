"""The model compiled by OpenVINO, and the cache of converted models."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from colbert_fast.caches import cache_folder
from colbert_fast.errors import MissingDependencyError
from colbert_fast.model.device import resolve_dtype
from colbert_fast.storage.files import record_files

if TYPE_CHECKING:
    from colbert_fast.model.colbert import ColBERT
    from colbert_fast.model.runner import Runner

__all__ = ["load_openvino", "openvino_runner"]

logger = logging.getLogger(__name__)

# Of what is in a cached folder; a change of the conversion gets a new one.
FORMAT = 2
FILES = ("model.xml", "model.bin")
RECORD = "record.json"

# Values of a token that share the scale of their int8 codes. On MiniLM: 64 costs 8% more time,
# 384 saves 5% and doubles the error.
GROUP = 128


def load_openvino() -> Any:
    """The package, without its telemetry; MissingDependencyError if it is not installed."""
    # Importing openvino sends statistics of its use to its makers wherever it finds the package
    # openvino_telemetry, which comes with it. That is not for a library to decide: it finds none.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "backend='openvino' needs the package openvino: pip install \"colbert-fast[openvino]\""
        ) from error
    return openvino


def openvino_runner(model: ColBERT) -> Runner:
    """Compile `model` for this CPU, with torch's number of threads at this moment.

    The first call for some weights converts them, which takes ten seconds or more, into a folder of
    the user's cache; later ones check that folder's checksums. A folder that is damaged is made
    again, which is logged as a warning.

    int8 is of weights and activations, in products with a constant matrix: a scale for each output
    feature, and one for each GROUP values of each token, found as it is encoded. No calibration,
    and no text's rows depend on what it is batched with but by rounding. The rest, and all of it on
    a CPU that OpenVINO has no int8 products for, is as dtype="auto".
    """
    openvino = load_openvino()
    int8 = model.dtype == "int8"
    arithmetic = resolve_dtype("auto", model.device) if int8 else model.dtype
    compiled = openvino.Core().compile_model(
        _converted(model, openvino, int8=int8) / FILES[0],
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[arithmetic],
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP if int8 else 0,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
        },
    )

    def run(
        input_ids: npt.NDArray[np.int64], attention_mask: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        # A request of its own for each call (microseconds): requests are not for several threads.
        outputs = compiled.create_infer_request().infer([input_ids, attention_mask])
        rows: npt.NDArray[np.float32] = outputs[0]
        return rows

    return run


def _converted(model: ColBERT, openvino: Any, *, int8: bool) -> Path:
    """The folder of the converted model, made if it is not there or damaged."""
    parent = cache_folder("openvino")
    folder = parent / _name(model, openvino, int8=int8)
    if folder.exists() and not _is_whole(folder):
        logger.warning("%s: damaged; converting the model again", folder)
        shutil.rmtree(folder)
    if not folder.exists():
        logger.info("converting %s for OpenVINO into %s", model.name, folder)
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".converting-") as temporary:
            made = Path(temporary) / folder.name
            made.mkdir()
            _convert(model, openvino, made, int8=int8)
            _move(made, folder)
    return folder


def _name(model: ColBERT, openvino: Any, *, int8: bool) -> str:
    """The fingerprint and a digest of all else that the conversion depends on."""
    facts = [
        model.backbone.config.to_json_string(),
        [(repr(layer), layer.use_residual) for layer in model.projection.dense_layers],
        [openvino.__version__, torch.__version__, transformers.__version__],
        int8,
        FORMAT,
    ]
    digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()
    return f"{model.fingerprint()}-{digest}"


def _is_whole(folder: Path) -> bool:
    try:
        recorded = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return bool(recorded == _record(folder))
    except (FileNotFoundError, ValueError):
        return False


def _record(folder: Path) -> dict[str, list[int]]:
    """The size and checksums of each of FILES, as JSON reads them back."""
    return {name: [each.size, *each.crc32] for name, each in record_files(folder, FILES).items()}


def _move(made: Path, folder: Path) -> None:
    """Rename into place, unless another process was first."""
    try:
        made.rename(folder)
    except OSError:
        if not folder.exists():
            raise


def _convert(model: ColBERT, openvino: Any, folder: Path, *, int8: bool) -> None:
    """Write FILES and their RECORD."""
    # Two tensors: one given twice is traced as one input.
    ids, mask = torch.zeros(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64)
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    # What torch's and OpenVINO's own code warns of is deprecations in it, not about the model.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            model, (ids, mask), dynamic_shapes=(sizes, sizes), strict=False
        )
        graph = openvino.convert_model(program)
    if int8:
        _quantise_weights(graph)
    openvino.save_model(graph, folder / FILES[0], compress_to_fp16=False)
    (folder / RECORD).write_text(json.dumps(_record(folder)), encoding="utf-8")


def _quantise_weights(graph: Any) -> None:
    """Put int8 codes times a scale for each output feature in place of the constant matrices."""
    from openvino import opset13

    for product in graph.get_ordered_ops():
        if product.get_type_name() != "MatMul" or not product.get_attributes()["transpose_b"]:
            continue
        constant = product.input(1).get_source_output().get_node()
        if constant.get_type_name() != "Constant":
            continue
        W = constant.get_data()
        scale = np.maximum(np.abs(W).max(axis=1, keepdims=True), np.float32(1e-12)) / np.float32(
            127
        )
        codes = opset13.convert(opset13.constant(np.rint(W / scale).astype(np.int8)), "f32")
        decoded = opset13.multiply(codes, opset13.constant(scale))
        product.input(1).replace_source_output(decoded.output(0))
