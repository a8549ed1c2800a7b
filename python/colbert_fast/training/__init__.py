"""Training: losses on MaxSim scores, data, mining, teachers and the trainer."""

from __future__ import annotations
