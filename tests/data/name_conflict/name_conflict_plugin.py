"""A plugin that takes the name of the built-in format."""

from torch import Tensor, nn

from quantlora import Quantizer, hookimpl


class Mine(Quantizer):
    name = "float"
    module = "name_conflict_plugin"

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (nn.Bilinear,)

    def dequantize(self, layer: nn.Module) -> Tensor:
        raise NotImplementedError


@hookimpl
def quantlora_quantizers():
    return [Mine()]
