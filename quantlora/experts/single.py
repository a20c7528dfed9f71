"""One expert of a packed stack as a linear layer, for what works layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantlora.formats.expert_stack import ExpertStack
from quantlora.formats.quantizer import Quantizer


class SingleExpert(nn.Module):
    """Args: stack: of one expert. path: with the stack's name and the expert's number."""

    bias: None = None

    def __init__(self, stack: ExpertStack, path: str) -> None:
        super().__init__()
        self.stack, self.path = stack, path
        _, self.out_features, self.in_features = stack.shape

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.stack.dequantize([0], x.dtype)[0])


class SingleExpertFormat(Quantizer):
    """The format of `SingleExpert`; ``packer`` packs stacks. Of no plugin: nobody looks for it."""

    name = "single_expert"
    module = "quantlora"
    requires = ()

    def __init__(self, packer: Quantizer) -> None:
        self.packer = packer
        vars(self)["name"] = packer.name

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (SingleExpert,)

    def dequantize(self, layer: nn.Module) -> Tensor:
        stack: Any = layer.stack
        wide: Tensor = stack.dequantize([0], torch.promote_types(stack.dtype, torch.float32))[0]
        return wide

    def quantize(
        self, linear: nn.Linear, like: nn.Module | None = None, **options: Any
    ) -> nn.Module:
        assert isinstance(like, SingleExpert)
        weight = linear.weight.detach()[None]
        stack = self.packer.quantize_experts(weight, like.path, like=like.stack)
        return SingleExpert(stack, like.path)
