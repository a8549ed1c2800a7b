"""The kernels: public functions (ops), their specification (reference), gradients, backend."""

from __future__ import annotations
