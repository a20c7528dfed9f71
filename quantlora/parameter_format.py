"""The format of plain float parameters, for merging into them."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantlora.quantizer import Quantizer


def weights(module: nn.Module) -> dict[str, Tensor]:
    """The module's own float parameters with two or three dimensions."""
    own = module.named_parameters(recurse=False)
    return {name: p for name, p in own if p.dim() in (2, 3) and p.is_floating_point()}


class ParameterFormat(Quantizer):
    """Takes all `weights` of a module for one matrix of one row; it is in no registry."""

    name: ClassVar[str] = "float"
    module: ClassVar[str] = "torch"

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return ()

    def dequantize(self, layer: nn.Module) -> Tensor:
        return torch.cat([one.detach().reshape(-1) for one in weights(layer).values()])[None]

    def quantize(
        self, linear: nn.Linear, like: nn.Module | None = None, **options: Any
    ) -> nn.Module:
        """``like`` with parameters of its own, cut from ``linear``'s only row."""
        assert like is not None
        old, row = weights(like), linear.weight.detach()[0]
        new = copy.copy(like)
        new._parameters = dict(like._parameters)
        for (name, one), part in zip(
            old.items(), row.split([one.numel() for one in old.values()]), strict=True
        ):
            stored = part.reshape(one.shape).to(one.dtype, copy=True)
            new._parameters[name] = nn.Parameter(stored, requires_grad=False)
        return new

    def shape(self, layer: nn.Module) -> tuple[int, int]:
        return 1, sum(one.numel() for one in weights(layer).values())

    def bias(self, layer: nn.Module) -> Tensor | None:
        return None
