"""A plugin whose format has a name with a meaning of its own."""

from torch import Tensor, nn

from quantlora import Quantizer, hookimpl


class Auto(Quantizer):
    name = "auto"
    module = "reserved_name_plugin"

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (nn.Bilinear,)

    def dequantize(self, layer: nn.Module) -> Tensor:
        raise NotImplementedError


@hookimpl
def quantlora_quantizers():
    return [Auto()]
