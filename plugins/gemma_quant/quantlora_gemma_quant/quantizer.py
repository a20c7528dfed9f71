"""The quantizer ``gemma_quant``: integers of 2, 4 or 8 bits, one scale for each row.

    W[o, i] = (code[o, i] - 2^(bits - 1)) · scale[o]

Codes of 2 and 4 bits are packed along a row, little end first; those of 8 bits are int8.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlora import (
    AffineWeight,
    BackendError,
    InferenceCopy,
    Quantizer,
    dense_copy,
    pack_bits,
    unpack_bits,
)
from quantlora_gemma_quant.requires import TRANSFORMERS


class GemmaQuantizer(Quantizer):
    """Activations are not rounded in training, whatever their scales say."""

    name: ClassVar[str] = "gemma_quant"
    module: ClassVar[str] = "transformers.integrations.gemma_quant"
    requires = (TRANSFORMERS,)
    bits: ClassVar[tuple[int, ...]] = (2, 4, 8)
    preference: ClassVar[int] = -25

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        from transformers.integrations.gemma_quant import QuantizedLinear

        return (QuantizedLinear,)

    def dequantize(self, layer: Any) -> Tensor:
        scale: Tensor = layer.weight_scale.detach().float()
        return (_codes(layer).float() - _half(layer)) * scale

    def inference_copy(self, layer: nn.Module, dtype: torch.dtype) -> InferenceCopy:
        return dense_copy(partial(self.dequantize_to, layer, dtype), self.shape(layer), dtype)

    def prepare(self, layer: Any, path: str) -> None:
        wanted = (layer.out_features, -(-layer.in_features * layer.num_bits // 8))
        scale, problem = layer.weight_scale, ""
        if tuple(layer.weight.shape) != wanted:
            problem = f"weight has shape {tuple(layer.weight.shape)}, not {wanted}"
        elif tuple(scale.shape) != (layer.out_features, 1):
            problem = f"weight_scale has shape {tuple(scale.shape)}, not {(wanted[0], 1)}"
        elif not scale.is_meta and not (scale.isfinite().all() and scale.any()):
            problem = "weight_scale is all zero or not finite: the file lacks this layer's"
        if problem:
            raise BackendError(f"{path}: this Gemma layer cannot be read: {problem}.")

    @torch.no_grad()
    def quantize(
        self, linear: nn.Linear, like: nn.Module | None = None, *, bits: int = 4, **options: Any
    ) -> nn.Module:
        """The nearest codes, each row's largest value at the end of their range.

        Args:
            like: a layer whose bits and scales of activations are taken; a row keeps its scale
                where that errs less.
            bits: 2, 4 or 8.
        """
        layer: Any = copy.deepcopy(like) if like is not None else self._empty(linear, bits)
        weight, half = linear.weight.detach().float(), _half(layer)
        scale = weight.abs().amax(1, keepdim=True) / (half - 1)
        scale = torch.where(scale == 0, 1.0, scale)
        if like is not None:
            own = layer.weight_scale.detach().float()
            keep = _error(weight, own, half) <= _error(weight, scale, half)
            scale = torch.where(keep, own, scale)
        codes = _nearest(weight, scale, half)
        layer.weight = nn.Parameter(_packed_as(layer, codes + half), requires_grad=False)
        layer.weight_scale = nn.Parameter(scale, requires_grad=False)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        return layer.train(linear.training)  # type: ignore[no-any-return]

    def _empty(self, linear: nn.Linear, bits: int) -> nn.Module:
        (kind,) = self.layer_types()
        with linear.weight.device:
            layer: Any = kind(linear.in_features, linear.out_features, False, bits)
        return layer.requires_grad_(False)  # type: ignore[no-any-return]

    def group_size(self, layer: Any) -> int | None:
        return int(layer.in_features)

    def affine(self, layer: Any) -> AffineWeight | None:
        scales = layer.weight_scale.detach().float()
        zeros = torch.full_like(scales, _half(layer))
        return AffineWeight(_codes(layer), scales, zeros, layer.num_bits, layer.in_features)

    def packed_parameter(self, layer: nn.Module) -> Tensor | None:
        return layer.weight  # type: ignore[return-value]

    def describe(self, layer: Any) -> dict[str, Any]:
        return {"bits": layer.num_bits}


def _half(layer: Any) -> int:
    return int(2 ** (layer.num_bits - 1))


def _codes(layer: Any) -> Tensor:
    """Codes uint8 ``(out, in)``, from 0."""
    weight: Tensor = layer.weight.detach()
    if layer.num_bits == 8:
        return (weight.to(torch.int16) + 128).to(torch.uint8)
    return unpack_bits(weight.view(torch.uint8), layer.num_bits, layer.in_features)


def _packed_as(layer: Any, codes: Tensor) -> Tensor:
    """Codes from 0 as ``layer`` keeps them."""
    if layer.num_bits == 8:
        return (codes - 128).to(torch.int8)
    padded = F.pad(codes.to(torch.uint8), (0, -codes.shape[1] % (8 // layer.num_bits)))
    return pack_bits(padded, layer.num_bits, torch.uint8)


def _nearest(weight: Tensor, scale: Tensor, half: int) -> Tensor:
    return (weight / scale).round().clamp(-half, half - 1)


def _error(weight: Tensor, scale: Tensor, half: int) -> Tensor:
    again = _nearest(weight, scale, half) * scale
    return (again - weight).square().sum(1, keepdim=True)
