"""NaN and infinity are looked for where a weight is packed, merged or read from a file.

One of them spoils its whole block, row or layer, and no comparison tells: ``nan > 0.5`` is false.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from quantlora.errors import BackendError
from quantlora.formats.quantizer import Quantizer


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are numbers; one pass without a mask where they are."""
    if tensor.is_meta or not tensor.is_floating_point() or tensor.element_size() < 2:
        return True  # of one byte are codes
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return bool(tensor.sum(dtype=wide).isfinite()) or bool(tensor.isfinite().all())


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of those that hold NaN or infinite values."""
    return [name for name, tensor in tensors.items() if not is_finite(tensor.detach())]


def check_packable(linear: nn.Linear, path: str) -> None:
    """Raise `BackendError` where a float layer is not to be packed."""
    if not is_finite(linear.weight.detach()):
        raise BackendError(
            f"{path}: the weight holds NaN or infinite values and cannot be quantized; repair it, "
            f"or leave the layer out with exclude_modules."
        )


def check_packed(quantizer: Quantizer, layer: nn.Module, weight: Tensor, path: str) -> None:
    """Raise `BackendError` where packing a finite weight has made NaN or infinite values.

    Args:
        weight: what was packed, for the message.
    """
    if not is_finite(quantizer.dequantize(layer)):
        raise BackendError(
            f"{path}: packed by {quantizer.name!r} the weight holds NaN or infinite values, for "
            f"its numbers (up to {float(weight.abs().max()):.3g}) are beyond the format's range: "
            f"leave the layer out with exclude_modules, or take another backend."
        )
