"""A plugin that takes the name of a built-in variant."""

from quantlora import LoraLinear, hookimpl


class MyLora(LoraLinear):
    variant = "lora"


@hookimpl
def quantlora_layer_wrappers():
    return [MyLora]
