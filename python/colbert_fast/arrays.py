"""Arrays of users: NumPy's, or anyone's that can become NumPy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["as_array"]


def as_array(value: Any) -> npt.NDArray[Any]:
    """A NumPy array of an array or a tensor (on any device; bfloat16 becomes float32)."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        value = value.numpy()
    return np.asarray(value)
