"""The forward pass of `encode_*`, by torch or OpenVINO: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from colbert_fast.model.openvino_runner import openvino_runner
from colbert_fast.model.packed_bert import can_pack, pack_bert

if TYPE_CHECKING:
    from colbert_fast.model.colbert import ColBERT

__all__ = ["Runner", "make_runner"]

# (texts, length) int64 ids and attention mask to (texts, length, dim) float32 unit rows. Weights
# are those of the time when it was made.
Runner = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.NDArray[np.float32]]


def make_runner(model: ColBERT) -> Runner:
    """Prepare the forward pass of `model` in its `backend` and `dtype`."""
    return openvino_runner(model) if model.backend == "openvino" else _torch_runner(model)


def _torch_runner(model: ColBERT) -> Runner:
    dtype = getattr(torch, model.dtype)
    packed = pack_bert(model.backbone, dtype) if can_pack(model.backbone, dtype) else None

    @torch.inference_mode()
    def run(
        input_ids: npt.NDArray[np.int64], attention_mask: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        device = model.device
        ids = torch.from_numpy(input_ids).to(device)
        mask = torch.from_numpy(attention_mask).to(device)
        if packed is not None:
            rows = model.projection(packed(ids, mask))
        else:
            # Autocast keeps softmax and layer norms in float32 and the weights as they are.
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                rows = model(ids, mask)
        result: npt.NDArray[np.float32] = rows.cpu().numpy()
        return result

    return run
