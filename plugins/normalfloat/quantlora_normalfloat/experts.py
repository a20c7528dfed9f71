"""`NormalFloatExperts`: the matrices of a mixture's experts, each packed like a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from quantlora import ExpertStack
from quantlora_normalfloat.blocks import decode
from quantlora_normalfloat.layer import NormalFloatLinear, settings
from quantlora_normalfloat.packing import look_up
from quantlora_normalfloat.scales import DoubleScales, Scales


class NormalFloatExperts(ExpertStack):
    """The tensors of one `NormalFloatLinear` for each expert, stacked along a first dimension.

    They are in float32 or in bytes whatever dtype is asked for; `dtype` is that of the weight.
    """

    format = "normalfloat"
    packed: Tensor
    levels: Tensor
    zeros: Tensor | None

    def __init__(self, experts: Sequence[NormalFloatLinear]) -> None:
        super().__init__()
        first = experts[0]
        self.in_features, self.out_features = first.in_features, first.out_features
        self.settings, self.dtype = settings(first), first.dtype
        self.register_buffer("packed", torch.stack([expert.packed for expert in experts]))
        self.register_buffer("levels", first.levels)
        zeros = [expert.zeros for expert in experts if expert.zeros is not None]
        self.register_buffer("zeros", torch.stack(zeros) if zeros else None)
        self.scales = _stacked([expert.scales for expert in experts])

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.packed), self.out_features, self.in_features

    def dequantize(self, experts: Sequence[int], dtype: torch.dtype) -> Tensor:
        out = self.levels.new_empty((len(experts), *self.shape[1:]), dtype=dtype)
        for i, expert in enumerate(experts):
            out[i] = self._weight_of(expert)
        return out

    def _weight_of(self, expert: int) -> Tensor:
        """``(out_features, in_features)`` in float32."""
        count = self.in_features * self.out_features
        values = look_up(self.packed[expert], self.levels, count)
        zeros = None if self.zeros is None else self.zeros[expert]
        values = values.view(self.out_features, self.in_features)
        return decode(values, _of_expert(self.scales, expert)(), zeros, self.settings["block_size"])

    def describe(self) -> dict[str, Any]:
        return dict(self.settings)


def _stacked(scales: Sequence[nn.Module]) -> nn.Module:
    """The buffers of all of them in one module of their class, with the experts first."""
    kind = DoubleScales if isinstance(scales[0], DoubleScales) else Scales
    new = kind((0, 0), "meta")
    for name in new._buffers:
        setattr(new, name, torch.stack([getattr(scale, name) for scale in scales]))
    return new


def _of_expert(scales: nn.Module, expert: int) -> nn.Module:
    new = (DoubleScales if isinstance(scales, DoubleScales) else Scales)((0, 0), "meta")
    for name, tensor in scales._buffers.items():
        assert tensor is not None
        setattr(new, name, tensor[expert])
    return new
