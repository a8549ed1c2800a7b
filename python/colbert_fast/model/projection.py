"""The layers behind the backbone: one or more Dense, in float32 as loaded, then unit rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "Dense", "Projection", "identity_layer", "seeded_projection"]

# By the last part of the dotted name that PyLate and sentence-transformers write. A closed list:
# a checkpoint must not be able to name arbitrary code to import.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        nn.Identity,
        nn.Tanh,
        nn.ReLU,
        nn.GELU,
        nn.SiLU,
        nn.Mish,
        nn.ELU,
        nn.LeakyReLU,
        nn.Sigmoid,
        nn.Softplus,
    )
}


class Dense(nn.Module):
    """activation(x W^T + b), plus x (or x R^T where the sizes differ) when residual.

    Parameter names are those of sentence-transformers and PyLate files: `linear.weight`,
    `linear.bias`, `residual.weight`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        activation: str = "Identity",
        use_residual: bool = False,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation = ACTIVATIONS[activation]()
        self.use_residual = use_residual
        if use_residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., in_features) any float dtype to (..., out_features) of the weights' dtype."""
        weight = self.linear.weight  # not float32 after model.half(), a method where quantised
        hidden = hidden.to(weight.dtype if isinstance(weight, Tensor) else torch.float32)
        out: Tensor = self.activation(self.linear(hidden))
        if not self.use_residual:
            return out
        if self.in_features == self.out_features:
            return out + hidden
        residual: Tensor = self.residual(hidden)
        return out + residual


class Projection(nn.Module):
    """Dense layers in a row, then L2 normalisation (norm clamped at 1e-12)."""

    def __init__(self, layers: Sequence[Dense]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    @property
    def dense_layers(self) -> list[Dense]:
        """The layers, first to last."""
        return [layer for layer in self.layers if isinstance(layer, Dense)]

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., in_features) any float dtype to (..., dim) float32 rows of unit length."""
        for layer in self.layers:
            hidden = layer(hidden)
        return nn.functional.normalize(hidden.float(), p=2.0, dim=-1, eps=1e-12)


def identity_layer(width: int) -> Dense:
    """A layer that gives what it gets, to the bit."""
    layer = Dense(width, width)
    nn.init.eye_(layer.linear.weight)
    return layer


def seeded_projection(in_features: int, dim: int, seed: int) -> Projection:
    """An untrained layer with orthonormal rows drawn from `seed`.

    Orthonormal rows keep inner products in expectation (a Johnson-Lindenstrauss projection), so an
    encoder that is meaningful before it stays so.
    """
    generator = torch.Generator().manual_seed(seed)
    tall = max(in_features, dim)
    basis, _ = torch.linalg.qr(torch.randn(tall, min(in_features, dim), generator=generator))
    layer = Dense(in_features, dim)
    with torch.no_grad():
        layer.linear.weight.copy_(basis.T if dim <= in_features else basis)
    return Projection([layer])
