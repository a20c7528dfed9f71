"""How the buffers of an AWQ layer are read and written, and which layers cannot be.

In the format "gemm", AutoAWQ's, codes are packed along the outputs:

    qweight (in, out · bits / 32), qzeros (groups, out · bits / 32), scales (groups, out)
    W[o, i] = scales[g, o] · (code[i, o] - zero[g, o]),  g = i // group_size
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from quantlora import AffineWeight, BackendError, pack_bits, unpack_bits

#: Which of eight neighbours each place of a 4-bit word holds, as AutoAWQ's kernel wants them.
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_PLACES = tuple(ORDER.index(i) for i in range(8))
#: The widths that `AffineWeight` has.
BITS = (2, 3, 4, 8)
_LOADED = 'from_pretrained(..., quantization_config=AwqConfig(backend="torch_awq"))'


def read(layer: Any) -> AffineWeight:
    """The layer as a grid of codes, scales and zero-points."""
    codes, zeros = (_unpack(words, layer) for words in (layer.qweight, layer.qzeros))
    scales = layer.scales.t()
    size = layer.in_features // scales.shape[1]
    return AffineWeight(codes.t(), scales, zeros.t().to(scales.dtype), layer.bits, size)


def write(layer: Any, weight: AffineWeight) -> None:
    """Put ``weight``, whose zero-points are integers, into the layer's buffers."""
    layer.qweight, layer.qzeros = (
        pack_bits(_swapped(codes.t().to(torch.uint8), ORDER, weight.bits), weight.bits)
        for codes in (weight.codes, weight.zeros)
    )
    layer.scales = weight.scales.t().contiguous()


def check(layer: Any, path: str) -> None:
    """Raise `BackendError` where ``layer`` cannot be trained through, naming path and remedy."""
    kernel = f"{path}: the kernel {type(layer).__name__}"
    if "gemm" not in (layer.SUPPORTS_FORMATS or ()) or not layer.SUPPORTS_TRAINING:
        raise BackendError(f"{kernel} keeps the weight in an order of its own. Use {_LOADED}.")
    if getattr(layer, "linear_mode", None) == "inference":
        raise BackendError(
            f"{kernel} has run without gradients and repacked its weight for inference. Load the "
            f"model again and wrap it before its first forward, or use {_LOADED}."
        )
    if getattr(layer, "adapter", None) is not None:
        raise BackendError(f"{kernel} has an adapter of GPTQModel's (EoRA): load it without.")
    for problem in _problems(layer):
        raise BackendError(
            f"{path}: this AWQ layer cannot be read: {problem}. The checkpoint is damaged or "
            f"incomplete, or was written by something that packs in another way."
        )


def _problems(layer: Any) -> Iterator[str]:
    rows, columns, bits = layer.in_features, layer.out_features, layer.bits
    if bits not in BITS:
        yield f"it has {bits} bits, and 2, 3, 4 and 8 can be read"
        return
    groups, words = -(-rows // layer.group_size), -(-columns * bits // 32)
    shapes = {"qweight": (rows, words), "qzeros": (groups, words), "scales": (groups, columns)}
    for name, wanted in shapes.items():
        found = getattr(layer, name, None)
        if not isinstance(found, Tensor):
            yield f"it has no {name}"
        elif tuple(found.shape) != wanted:
            yield f"{name} has shape {tuple(found.shape)}, not {wanted}"
        elif (found.dtype == torch.int32) != (name != "scales"):
            yield f"{name} is {found.dtype}"
        elif name == "scales" and not found.is_meta:
            if not found.isfinite().all():
                yield "its scales hold NaN or infinite values"
            elif not found.any():
                yield "all its scales are zero: the checkpoint lacks this layer's tensors"


def _unpack(words: Tensor, layer: Any) -> Tensor:
    codes = unpack_bits(words, layer.bits, layer.out_features)
    return _swapped(codes, _PLACES, layer.bits)


def _swapped(codes: Tensor, order: tuple[int, ...], bits: int) -> Tensor:
    return torch.unflatten(codes, -1, (-1, 8))[..., order].flatten(-2) if bits == 4 else codes


def is_awq(layer: nn.Module) -> bool:
    """Whether GPTQModel has made ``layer`` for AWQ, by whichever kernel."""
    methods = getattr(layer, "SUPPORTS_METHODS", None) or ()
    return "awq" in methods and hasattr(layer, "out_features")
