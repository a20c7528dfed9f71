"""LoRA's own first values: A random, B zero, so that training starts at the base model."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import nn

from quantlora.initializers.initializer import InitContext, Initializer
from quantlora.layers.layer import LoraLayer


class Default(Initializer):
    """A Kaiming-uniform, B zero (``init_lora_weights=True``; Hu et al. 2021, section 4.1)."""

    name: ClassVar[str] = "default"

    def initialize(self, layer: LoraLayer, context: InitContext) -> None:
        for name, parameter in layer.adapter_tensors(context.adapter).items():
            if name.endswith("lora_A.weight"):
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
            elif name == "lora_embedding_B":  # rows of A are read one by one: A starts at zero
                nn.init.normal_(parameter)


class Uniform(Initializer):
    """A and B Kaiming-uniform: not the base model at first (``init_lora_weights=False``)."""

    name: ClassVar[str] = "uniform"

    def initialize(self, layer: LoraLayer, context: InitContext) -> None:
        for name, parameter in layer.adapter_tensors(context.adapter).items():
            if name.endswith(layer.factor_names):
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))


class Gaussian(Initializer):
    """A normal with deviation 1/r, B zero."""

    name: ClassVar[str] = "gaussian"

    def initialize(self, layer: LoraLayer, context: InitContext) -> None:
        for name, parameter in layer.adapter_tensors(context.adapter).items():
            if name.endswith(("lora_A.weight", "lora_embedding_B")):
                nn.init.normal_(parameter, std=1 / layer.r[context.adapter])


#: The core's own, which look at no base.
RANDOM = (Default, Uniform, Gaussian)
