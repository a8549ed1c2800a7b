"""Make this folder's weights of trained checkpoints: what their mean has beside MiniLM.

``python -m colbert_fast.model.default.pack RUN/round-1/final RUN/round-2/final``
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from colbert_fast.errors import CheckpointError
from colbert_fast.model.checkpoint import load_checkpoint
from colbert_fast.model.default import DELTAS, minilm_folder
from colbert_fast.model.deltas import make_deltas
from colbert_fast.model.pylate import CONFIG, pylate_settings, save_dense, write_json
from colbert_fast.model.weights import load_backbone, mean_weights

__all__ = ["pack_default"]


def pack_default(trained: Sequence[Path], out: Path) -> None:
    """Write the changes of the backbone, the projection in float16, and the input layout.

    Parameters
    ----------
    trained : sequence of Path
        Checkpoints whose backbone was all-MiniLM-L6-v2 when their training began: the mean of
        their weights is packed, one that is named twice counting twice.
    out : Path
        A folder that is there; files of the same names are replaced.

    Raises
    ------
    CheckpointError
        A checkpoint has more than one layer behind its backbone, or another layout than the first.
    """
    checkpoints = [load_checkpoint(each) for each in trained]
    parts = checkpoints[0]
    for folder, each in zip(trained, checkpoints, strict=True):
        if len(each.projection.dense_layers) != 1:
            raise CheckpointError(f"{folder}: want one layer behind the backbone")
        if each.config != parts.config:
            raise CheckpointError(f"{folder}: another layout than {trained[0]}")
    for name in ("backbone", "projection"):
        mean = mean_weights(getattr(each, name).state_dict() for each in checkpoints)
        getattr(parts, name).load_state_dict(mean)
    base = load_backbone(minilm_folder(), allow_pickle=False)
    save_file(make_deltas(base, parts.backbone), out / DELTAS)
    save_dense(out / "1_Dense", parts.projection.dense_layers[0].half())
    write_json(out / CONFIG, pylate_settings(parts.config))


def main() -> None:
    """Pack checkpoints into the library's own folder, or another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trained", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    pack_default(options.trained, options.out)


if __name__ == "__main__":
    main()
