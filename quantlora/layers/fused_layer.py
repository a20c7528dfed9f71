"""Whether a `LoraLinear` may compute as one function (`adapted_linear`), and with what."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from quantlora.formats.autocast import working_dtype
from quantlora.formats.inference_memory import drop_copy
from quantlora.layers.dropout import SeededDropout
from quantlora.layers.fused import Branch, FrozenProduct, adapted_linear, can_fuse
from quantlora.layers.product_dtype import HALF, product_dtype


def fused_product(
    layer: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    keeps_input: bool = True,
) -> Tensor | None:
    """``x · dequantize(Q)ᵀ + bias + Σ s · B(A(x))``; None where something is needed in between.

    Args:
        weight: the base's, where it is dequantized already.
        keeps_input: see `adapted_linear`.
    """
    names = _names(layer, x)
    if not names:
        return None
    factors = {name: [factor.weight for factor in layer.factors(name)] for name in names}
    if not can_fuse(x, bias, *(factor for pair in factors.values() for factor in pair)):
        return None
    base, quantizer = layer.base_layer, layer.quantizer
    if layer.trained_weight(base, quantizer) is not None:
        return None
    if torch.is_grad_enabled():
        drop_copy(base)
    own = layer.frozen_weight(base, quantizer)
    frozen = FrozenProduct(own, layer.base_dtype(x), working_dtype(x, x.dtype), weight)
    given = [(_branch(layer, name, x), A, B) for name, (A, B) in factors.items()]
    return adapted_linear(x, bias, frozen, given, keeps_input)


def can_draw_again(layer: Any, name: str, x: Tensor) -> bool:
    """Whether adapter ``name`` drops nothing, or by a seed: the masks of float32 are PEFT's."""
    return not layer.drops(name) or _dtype(layer, name, x) in HALF


def _names(layer: Any, x: Tensor) -> tuple[str, ...]:
    """The adapters, where all of them may be in one function; none in a mixed batch.

    In training also without gradients: a re-entrant checkpoint computes the same once more with
    gradients, and both are to be equal.
    """
    if not (torch.is_grad_enabled() or layer.training):
        return ()
    if layer.sample_adapters is not None and layer.enabled:
        return ()
    names: tuple[str, ...] = layer.active_unmerged
    return names if all(layer.fuses(name, x) for name in names) else ()


def _dtype(layer: Any, name: str, x: Tensor) -> torch.dtype:
    return product_dtype(x, layer.factors(name)[0].weight.dtype)


def _branch(layer: Any, name: str, x: Tensor) -> Branch:
    scale = layer.scaling[name] * layer.input_scale(name)
    dropout = cast(nn.Dropout, layer.lora_dropout[name])
    drawn = SeededDropout.drawn(dropout.p) if layer.drops(name) else None
    return Branch(scale, _dtype(layer, name, x), drawn)
