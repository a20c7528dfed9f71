"""A linear layer's output while nothing is trained: what a token waits for.

A token's product takes a tenth of a millisecond, and so would asking everything that a forward
in training asks. Here each is asked once, and the weight is never wrapped for a backward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantlora.formats.inference_memory import copied_product
from quantlora.formats.offloaded import is_offloaded
from quantlora.formats.transforms import transformed


def inferred(layer: Any, x: Tensor) -> Tensor | None:
    """The output of ``layer``, a `LoraLinear`, for ``x``; None where it is computed otherwise.

    That is in training, in mixed batches, under autocast and transforms, and for variants whose
    update is no sum (`LoraLinear.adds`).
    """
    if torch.is_grad_enabled() or layer.training or _is_special(x):
        return None
    names = layer.adapters_for_all
    if names is None or layer.called or not layer.adds(names):
        return None
    base = layer.base_layer
    if is_offloaded(base):
        return None
    product: Tensor = layer.adapted(_product(layer.quantizer, base, x), x, names)
    return product


def _is_special(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or transformed():
        return True
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def _product(quantizer: Any, base: Any, x: Tensor) -> Tensor:
    """``x · dequantize(Q)ᵀ`` in the layer's compute dtype, in new memory."""
    dtype = quantizer.compute_dtype(base) or x.dtype
    x = x if x.dtype == dtype else x.to(dtype)
    y: Tensor | None = quantizer.matmul(base, x)
    if y is None:
        y = copied_product(quantizer, base, x)
    return F.linear(x, quantizer.dequantize_to(base, dtype)) if y is None else y
