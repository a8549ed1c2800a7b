"""ColBERT models: text in, unit token embeddings out. Importing this imports torch."""

from __future__ import annotations

from colbert_fast.errors import MissingDependencyError

try:
    from colbert_fast.model.colbert import ColBERT
    from colbert_fast.model.config import ModelConfig
except ModuleNotFoundError as error:
    if error.name not in ("torch", "transformers", "safetensors"):
        raise
    raise MissingDependencyError(
        f'models need the package {error.name}: pip install "colbert-fast[encode]"'
    ) from error

__all__ = ["ColBERT", "ModelConfig"]
