"""From pairs of questions and passages to a trained model."""

from __future__ import annotations
