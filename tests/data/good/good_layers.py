"""A format that stores half of each weight, a variant, an initializer, a loader."""

import torch
from torch import Tensor, nn

from quantlora import InitContext, Initializer, LoraLayer, LoraLinear, ModelLoader, Quantizer


class HalvedLinear(nn.Module):
    """Holds ``weight / 2``; no subclass of `nn.Linear`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.register_buffer("halves", linear.weight.detach() / 2)
        self.bias = None


class HalvedQuantizer(Quantizer):
    name = "halved"
    module = "good_layers"

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (HalvedLinear,)

    def dequantize(self, layer: nn.Module) -> Tensor:
        return layer.halves * 2

    def quantize(self, linear, like=None, **options) -> nn.Module:
        return HalvedLinear(linear)


class NegatedLora(LoraLinear):
    """Subtracts the update of its own adapters; others on the same layer are plain LoRA."""

    variant = "negated"

    def sign(self, name: str) -> int:
        return -1 if self.has_variant(name) else 1

    def delta(self, name: str, x: Tensor, *args) -> Tensor:
        return self.sign(name) * super().delta(name, x, *args)

    def delta_weight(self, name: str, weight: Tensor) -> Tensor:
        return self.sign(name) * super().delta_weight(name, weight)

    def delta_bias(self, name: str, weight: Tensor) -> Tensor | None:
        bias = super().delta_bias(name, weight)
        return None if bias is None else self.sign(name) * bias


class Ones(Initializer):
    name = "ones"

    def initialize(self, layer: LoraLayer, context: InitContext) -> None:
        with torch.no_grad():
            for parameter in layer.adapter_tensors(context.adapter).values():
                parameter.fill_(1.0)


class GoodFiles(ModelLoader):
    name = "good files"

    def claims(self, request) -> bool:
        return request.source.endswith(".good")

    def load(self, request) -> nn.Module:
        return nn.Linear(len(request.source), 1)
