"""ColBERT models: text in, unit token embeddings out. Importing this imports torch."""

from __future__ import annotations

from colbert_fast.model.colbert import ColBERT
from colbert_fast.model.config import ModelConfig

__all__ = ["ColBERT", "ModelConfig"]
