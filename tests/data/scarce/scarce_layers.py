"""`fail_at` chooses the step, counted from the call of it, that raises."""

import torch
from torch import Tensor, nn

from quantlora import InitContext, Initializer, LoraLayer, Quantizer


class Memory:
    """How many steps are left until it is used up; below 0: never."""

    left = -1
    error: BaseException = MemoryError()


def fail_at(step: int, error: BaseException) -> None:
    Memory.left, Memory.error = step, error


def take() -> None:
    Memory.left -= 1
    if Memory.left == -1:
        raise Memory.error
    Memory.left = max(Memory.left, -2)


class ScarceLinear(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.register_buffer("kept", linear.weight.detach().clone())
        self.bias = linear.bias


class ScarceQuantizer(Quantizer):
    name = "scarce"
    module = "scarce_layers"

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (ScarceLinear,)

    def prepare(self, layer: nn.Module, path: str) -> None:
        take()

    def dequantize(self, layer: nn.Module) -> Tensor:
        take()
        return layer.kept

    def quantize(self, linear, like=None, **options) -> nn.Module:
        take()
        return ScarceLinear(linear)


class ScarceStart(Initializer):
    name = "scarce"

    def initialize(self, layer: LoraLayer, context: InitContext) -> None:
        for parameter in layer.adapter_tensors(context.adapter).values():
            take()
            with torch.no_grad():
                parameter.fill_(0.1)
