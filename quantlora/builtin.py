"""What the core itself brings, offered through the same hooks as any plugin's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from quantlora.checks import Check
from quantlora.hookspecs import hookimpl
from quantlora.requirements import Requirement

if TYPE_CHECKING:
    from quantlora.formats.quantizer import Quantizer
    from quantlora.initializers.initializer import Initializer
    from quantlora.layers.layer import LoraLayer


@hookimpl
def quantlora_quantizers() -> Iterable[Quantizer]:
    from quantlora.formats.float_quantizer import FloatQuantizer

    return [FloatQuantizer()]


@hookimpl
def quantlora_layer_wrappers() -> Iterable[type[LoraLayer]]:
    from quantlora.layers.convolution import LoraConv
    from quantlora.layers.dora import DoraConv, DoraEmbedding, DoraLinear
    from quantlora.layers.embedding import LoraEmbedding
    from quantlora.layers.linear import LoraLinear

    return [LoraLinear, LoraEmbedding, LoraConv, DoraLinear, DoraEmbedding, DoraConv]


@hookimpl
def quantlora_initializers() -> Iterable[Initializer]:
    from quantlora.initializers.random_init import Default, Gaussian, Uniform

    return [Default(), Uniform(), Gaussian()]


@hookimpl
def quantlora_checks() -> Iterable[Check]:
    return [Check("float", requires=(Requirement("torch>=2.5"), Requirement("transformers>=4.51")))]
