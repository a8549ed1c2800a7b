"""The progress bars of what writes an index."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

__all__ = ["progress_bar"]


def progress_bar(stage: str, unit: str, total: int | None, progress: bool) -> tqdm[Any]:
    """A progress bar; silent unless `progress`."""
    scaled = unit == "token"
    return tqdm(desc=stage, unit=unit, unit_scale=scaled, total=total, disable=not progress)
