"""A plugin that fails when it is shown a layer."""

from torch import Tensor, nn

from quantlora import Quantizer, hookimpl


class Fragile(Quantizer):
    name = "fragile"
    module = "matches_raises_plugin"

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (nn.Bilinear,)

    def matches(self, layer: nn.Module) -> bool:
        raise AttributeError("'Linear' object has no attribute 'qweight'")

    def dequantize(self, layer: nn.Module) -> Tensor:
        raise NotImplementedError


@hookimpl
def quantlora_quantizers():
    return [Fragile()]
