"""A format that stores half of each weight, a variant, an initializer."""

import torch
from torch import Tensor, nn

from quantlora import InitContext, Initializer, LoraConfig, LoraLayer, LoraLinear, Quantizer


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

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.sign: dict[str, int] = {}

    def tables(self) -> tuple:
        return (*super().tables(), self.sign)

    def finish_adapter(self, name: str, config: LoraConfig) -> None:
        self.sign[name] = -1 if config.variant == self.variant else 1

    def delta(self, name: str, x: Tensor, *args) -> Tensor:
        return self.sign.get(name, 1) * super().delta(name, x, *args)

    def delta_weight(self, name: str, weight: Tensor) -> Tensor:
        return self.sign.get(name, 1) * super().delta_weight(name, weight)

    def delta_bias(self, name: str, weight: Tensor) -> Tensor | None:
        bias = super().delta_bias(name, weight)
        return None if bias is None else self.sign.get(name, 1) * bias


class Ones(Initializer):
    name = "ones"

    def initialize(self, layer: LoraLayer, context: InitContext) -> None:
        with torch.no_grad():
            for parameter in layer.adapter_tensors(context.adapter).values():
                parameter.fill_(1.0)
