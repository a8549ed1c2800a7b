"""Model folders in and out: Stanford ColBERT, PyLate / sentence-transformers, plain encoders, ours.

Ours is the PyLate layout, so one reader serves both.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from colbert_fast.errors import CheckpointError
from colbert_fast.model.default import load_default
from colbert_fast.model.parts import Checkpoint, check_fit, config_from
from colbert_fast.model.projection import seeded_projection
from colbert_fast.model.pylate import load_modules, save_checkpoint
from colbert_fast.model.stanford import load_stanford, save_stanford
from colbert_fast.model.weights import (
    load_backbone,
    load_tokenizer,
    read_json,
    resolve_folder,
    setting,
)

__all__ = [
    "Checkpoint",
    "convert_checkpoint",
    "find_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
]

DEFAULT_DIM = 128

logger = logging.getLogger(__name__)


def find_checkpoint(
    path_or_hub_id: str | Path | None,
    *,
    allow_pickle: bool,
    revision: str | None,
    dim: int | None,
    seed: int,
) -> tuple[Checkpoint, str]:
    """Load the default model, a folder or a hub id; also the name to find it by again."""
    if path_or_hub_id is None or path_or_hub_id == "default":
        checkpoint, name = load_default(), "default"
    else:
        folder, name = resolve_folder(path_or_hub_id, allow_pickle=allow_pickle, revision=revision)
        checkpoint = load_checkpoint(folder, allow_pickle=allow_pickle, dim=dim, seed=seed)
    if dim not in (None, checkpoint.config.dim):
        raise ValueError(f"dim: want {dim}, but {name} has {checkpoint.config.dim}")
    return checkpoint, name


def convert_checkpoint(
    source: str | Path,
    target: Path,
    layout: Literal["stanford", "pylate"],
    *,
    allow_pickle: bool = False,
) -> None:
    """Write a model again, in Stanford's layout or in PyLate's; it gives the same embeddings.

    Parameters
    ----------
    source : str or Path
        A folder or hub id of any kind that is read here.
    target : Path
        A folder that does not exist yet.
    layout : {"stanford", "pylate"}
        Stanford's has no room for several or other than plain linear layers behind the encoder,
        for prompts, for queries without expansion, or for other skip lists than punctuation.
    allow_pickle : bool
        As for `load_checkpoint`.

    Raises
    ------
    CheckpointError
        `source` cannot be read, or is not to be had in that layout; the message says what of it.
    FileExistsError
        Something is at `target`.
    """
    if layout not in ("stanford", "pylate"):
        raise ValueError(f"layout must be 'stanford' or 'pylate', got {layout!r}")
    if target.exists():
        raise FileExistsError(f"{target} already exists; choose another folder")
    checkpoint, _ = find_checkpoint(
        source, allow_pickle=allow_pickle, revision=None, dim=None, seed=0
    )
    (save_stanford if layout == "stanford" else save_checkpoint)(target, checkpoint)


def load_checkpoint(
    folder: Path, *, allow_pickle: bool = False, dim: int | None = None, seed: int = 0
) -> Checkpoint:
    """Read a model folder of any supported kind.

    Parameters
    ----------
    folder : Path
    allow_pickle : bool
        Accept pytorch_model.bin, read with torch.load(weights_only=True).
    dim : int, optional
        Size of the projection added to an encoder that has none, 128 by default.
    seed : int
        Its seed.

    Raises
    ------
    CheckpointError
        Naming the file or key that is missing, foreign or of the wrong shape.
    """
    has_modules = (folder / "modules.json").is_file()
    checkpoint = load_modules(folder, allow_pickle=allow_pickle) if has_modules else None
    if checkpoint is not None:
        return checkpoint
    if (folder / "config.json").is_file():
        # Some have a modules.json with a Pooling beside it, for use with one vector a text.
        if _is_stanford(folder):
            return load_stanford(folder, allow_pickle=allow_pickle)
    elif not has_modules:
        raise CheckpointError(
            f"{folder}: neither config.json nor modules.json; not a model folder that I know"
        )
    return _load_plain(folder, allow_pickle=allow_pickle, dim=dim or DEFAULT_DIM, seed=seed)


def _is_stanford(folder: Path) -> bool:
    path = folder / "config.json"
    architectures: list[object] = setting(path, read_json(path, dict), "architectures", [])
    return "HF_ColBERT" in architectures or (folder / "artifact.metadata").is_file()


def _load_plain(folder: Path, *, allow_pickle: bool, dim: int, seed: int) -> Checkpoint:
    root = folder
    if not (root / "config.json").is_file():
        root = folder / str(read_json(folder / "modules.json", list)[0].get("path", ""))
    tokenizer = load_tokenizer(root)
    backbone = load_backbone(root, allow_pickle=allow_pickle)
    logger.warning(
        "%s has no ColBERT projection: added an UNTRAINED one to %d dimensions (seed %d); "
        "train the model before relying on its results",
        folder,
        dim,
        seed,
    )
    projection = seeded_projection(backbone.config.hidden_size, dim, seed)
    config = config_from(
        folder / "config.json",
        dim=dim,
        query_prefix="[unused0]" if "[unused0]" in tokenizer.get_vocab() else "",
        document_prefix="[unused1]" if "[unused1]" in tokenizer.get_vocab() else "",
    )
    return check_fit(Checkpoint(config, tokenizer, backbone, projection), folder)
