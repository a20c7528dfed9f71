"""A plugin that takes the name of another plugin's format."""

from torch import Tensor, nn

from quantlora import Quantizer, hookimpl


class Second(Quantizer):
    name = "halved"
    module = "second_halved_plugin"

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (nn.Bilinear,)

    def dequantize(self, layer: nn.Module) -> Tensor:
        raise NotImplementedError


@hookimpl
def quantlora_quantizers():
    return [Second()]
