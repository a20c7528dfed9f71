"""What quantlora has to know of the format: which layers, to float, from float."""

from typing import Any

from torch import Tensor, nn

from quantlora import Quantizer
from quantlora_absmax8.layer import Absmax8Linear


class Absmax8Quantizer(Quantizer):
    name = "absmax8"
    module = "quantlora_absmax8.layer"
    bits = (8,)

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (Absmax8Linear,)

    def dequantize(self, layer: nn.Module) -> Tensor:
        return layer.weight_matrix()

    def quantize(
        self, linear: nn.Linear, like: nn.Module | None = None, **options: Any
    ) -> nn.Module:
        bias = None if linear.bias is None else linear.bias.detach().clone()
        return Absmax8Linear.pack(linear.weight.detach(), bias)

    def describe(self, layer: nn.Module) -> dict[str, Any]:
        return {"bits": 8}
