"""`NormalFloatExperts`: the matrices of a mixture's experts, each packed like a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from quantlora import ExpertStack, PackedState
from quantlora_normalfloat.blocks import unpacked
from quantlora_normalfloat.layer import NormalFloatLinear, settings
from quantlora_normalfloat.packed_state import dtype_name
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
        first = experts[0]
        self._describe(first.out_features, first.in_features, settings(first), first.dtype)
        self.register_buffer("packed", torch.stack([expert.packed for expert in experts]))
        self.register_buffer("levels", first.levels)
        zeros = [expert.zeros for expert in experts if expert.zeros is not None]
        self.register_buffer("zeros", torch.stack(zeros) if zeros else None)
        self.scales = _stacked([expert.scales for expert in experts])

    def _describe(
        self, out_features: int, in_features: int, settings: dict[str, Any], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        self.settings, self.dtype = settings, dtype

    def packed_state(self) -> PackedState:
        sizes = {"out_features": self.out_features, "in_features": self.in_features}
        own = {**sizes, "dtype": dtype_name(self.dtype), "settings": dict(self.settings)}
        return PackedState(own, self.state_dict())

    @classmethod
    def from_state(cls, state: PackedState) -> NormalFloatExperts:
        """What `packed_state` was taken from; it holds these tensors."""
        new, own, tensors = cls.__new__(cls), dict(state.settings), state.tensors
        own["dtype"] = getattr(torch, own["dtype"])
        new._describe(**own)
        for name in ("packed", "levels", "zeros"):
            new.register_buffer(name, tensors.get(name))
        new.scales = (DoubleScales if own["settings"]["double_quant"] else Scales)((0, 0), "meta")
        for name in new.scales._buffers:
            setattr(new.scales, name, tensors[f"scales.{name}"])
        return new

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.packed), self.out_features, self.in_features

    def dequantize(self, experts: Sequence[int], dtype: torch.dtype) -> Tensor:
        out = self.levels.new_empty((len(experts), *self.shape[1:]), dtype=dtype)
        for i, expert in enumerate(experts):
            out[i] = self._weight_of(expert, dtype)
        return out

    def _weight_of(self, expert: int, dtype: torch.dtype) -> Tensor:
        """``(out_features, in_features)``."""
        zeros = None if self.zeros is None else self.zeros[expert]
        scales, shape = _of_expert(self.scales, expert)(), (self.out_features, self.in_features)
        block_size: int = self.settings["block_size"]
        return unpacked(self.packed[expert], self.levels, scales, zeros, shape, block_size, dtype)

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
