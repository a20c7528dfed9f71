"""A plugin whose quantizer raises when it is asked what it needs."""

import quantlora


class Odd(quantlora.Quantizer):
    name, module = "odd", "odd"

    @property
    def requires(self):
        raise RuntimeError("ask later")

    def layer_types(self):
        return ()

    def dequantize(self, layer):
        raise NotImplementedError


@quantlora.hookimpl
def quantlora_quantizers():
    return [Odd()]
