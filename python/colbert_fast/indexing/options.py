"""The settings of a build."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from colbert_fast.compress.codec import check_nbits
from colbert_fast.compress.device import BuildDevice, check_build_device
from colbert_fast.search.params import check_positive
from colbert_fast.storage.manifest import CODECS, CodecName

__all__ = ["BASE_BYTES", "BuildOptions"]

BASE_BYTES = 200 << 20  # what a build takes at any size: chunks and buffers


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """The settings of a build; see `Index.build`."""

    nbits: int = 2
    codec: CodecName = "default"
    num_centroids: int | None = None
    kmeans_iterations: int = 4
    seed: int = 42
    pool_factor: int = 1
    overwrite: bool = False
    resume: bool = False
    codec_from: Path | None = None
    memory_budget: int | None = None
    device: BuildDevice = "cpu"
    progress: bool = True

    def __post_init__(self) -> None:
        check_build_device(self.device)
        if self.codec not in CODECS:
            raise ValueError(f"codec must be one of {CODECS}, got {self.codec!r}")
        if self.codec != "float16":
            check_nbits(self.nbits)
        for name, least in (
            ("nbits", 1), ("num_centroids", 1), ("kmeans_iterations", 0), ("pool_factor", 1),
            ("seed", 0), ("memory_budget", BASE_BYTES + 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None:  # plain ints from here on: they are written as JSON
                object.__setattr__(self, name, check_positive(name, value, least=least))
