"""The kernels: public functions (ops), their specification (reference), gradients, what is running."""

from __future__ import annotations
