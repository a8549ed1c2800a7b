"""Make this folder's weights of a trained checkpoint: what it has beside MiniLM.

``python -m colbert_fast.model.default.pack RUN/round-1/final``
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import save_file

from colbert_fast.errors import CheckpointError
from colbert_fast.model.checkpoint import load_checkpoint
from colbert_fast.model.default import DELTAS, minilm_folder
from colbert_fast.model.deltas import make_deltas
from colbert_fast.model.pylate import CONFIG, pylate_settings, save_dense, write_json
from colbert_fast.model.weights import load_backbone

__all__ = ["pack_default"]


def pack_default(trained: Path, out: Path) -> None:
    """Write the changes of the backbone, the projection in float16, and the input layout.

    Parameters
    ----------
    trained : Path
        A checkpoint whose backbone was all-MiniLM-L6-v2 when its training began.
    out : Path
        A folder that is there; files of the same names are replaced.

    Raises
    ------
    CheckpointError
        The checkpoint has more than one layer behind its backbone.
    """
    parts = load_checkpoint(trained)
    if len(parts.projection.dense_layers) != 1:
        raise CheckpointError(f"{trained}: want one layer behind the backbone")
    base = load_backbone(minilm_folder(), allow_pickle=False)
    save_file(make_deltas(base, parts.backbone), out / DELTAS)
    save_dense(out / "1_Dense", parts.projection.dense_layers[0].half())
    write_json(out / CONFIG, pylate_settings(parts.config))


def main() -> None:
    """Pack a checkpoint into the library's own folder, or another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trained", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    pack_default(options.trained, options.out)


if __name__ == "__main__":
    main()
