"""The quantizer ``fp8``: e4m3 or e5m2 codes (Micikevicius et al. 2022, arXiv:2209.05433)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantlora import BackendError, InferenceCopy, Quantizer, dense_copy
from quantlora_fp8.requires import TRANSFORMERS, WHY
from quantlora_fp8.scales import DTYPES, NAMES, block_size, check, grid, is_fp8, largest, multiply


class Fp8Quantizer(Quantizer):
    """Trained with the dequantized weight; the input is never quantized."""

    name: ClassVar[str] = "fp8"
    module: ClassVar[str] = "torch"
    other_modules: ClassVar[tuple[str, ...]] = ("transformers",)
    requires = (TRANSFORMERS,)
    bits: ClassVar[tuple[int, ...]] = (8,)
    # Files in it are made for GPUs: never the choice where the user leaves it to us.
    preference: ClassVar[int] = -20

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        """None to name: a layer is known by its tensors, see `matches`."""
        return ()

    def matches(self, layer: nn.Module) -> bool:
        return is_fp8(layer)

    def dequantize(self, layer: nn.Module) -> Tensor:
        codes: Tensor = layer.weight.detach()  # type: ignore[operator]
        return multiply(codes.to(torch.float32, copy=True), grid(layer), block_size(layer))

    def inference_copy(self, layer: nn.Module, dtype: torch.dtype) -> InferenceCopy:
        return dense_copy(partial(self.dequantize_to, layer, dtype), self.shape(layer), dtype)

    def prepare(self, layer: nn.Module, path: str) -> None:
        check(layer, path)

    @torch.no_grad()
    def quantize(
        self,
        linear: nn.Linear,
        like: nn.Module | None = None,
        *,
        weight_block_size: Sequence[int] | None = (128, 128),
        **options: Any,
    ) -> nn.Module:
        """The nearest codes, each block's largest value at the end of their range.

        Args:
            like: a layer whose class, blocks and dtypes are taken; a block keeps its scale where
                that errs less.
            weight_block_size: rows and columns that share a scale; None: one for the tensor.
        """
        weight = linear.weight.detach().float()
        layer: Any = _empty(linear, weight_block_size) if like is None else copy.deepcopy(like)
        block, dtype = block_size(layer), layer.weight.dtype
        dtype = dtype if dtype in DTYPES else DTYPES[0]
        name = next(name for name in NAMES if getattr(layer, name, None) is not None)
        scale = getattr(layer, name)
        scales = _fit(weight, block, dtype, scale.dtype)
        if like is not None:
            errors = [_error(weight, tried, block, dtype) for tried in (grid(like), scales)]
            scales = torch.where(errors[0] <= errors[1], grid(like), scales)
        kept = scales.to(scale.dtype).view(scale.shape)
        layer.weight = nn.Parameter(_codes(weight, scales, block, dtype), requires_grad=False)
        setattr(layer, name, nn.Parameter(kept, requires_grad=False))
        bias = None if linear.bias is None else linear.bias.detach().clone()
        layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        return layer.train(linear.training)  # type: ignore[no-any-return]

    def checkpoint_config(
        self, layers: Mapping[str, nn.Module], linears: Mapping[str, nn.Module]
    ) -> dict[str, Any]:
        if len({str(self.describe(layer)) for layer in layers.values()}) > 1:
            raise BackendError("an FP8 checkpoint has one block size and one kind of scale.")
        layer: Any = next(iter(layers.values()))
        per_tensor = getattr(layer, "block_size", None) is None
        return {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": None if per_tensor else list(block_size(layer)),
            "modules_to_not_convert": [path for path in linears if path not in layers] or None,
        }

    def not_runnable(self, layer: nn.Module) -> str:
        if "transformers" not in type(layer).__module__ or _has_kernel(layer):
            return ""
        return WHY

    def packed_parameter(self, layer: nn.Module) -> Tensor | None:
        return layer.weight  # type: ignore[return-value]

    def not_shardable(self, layer: nn.Module) -> str:
        return "a shard of rows would be multiplied by the scales of other rows' blocks."

    def describe(self, layer: Any) -> dict[str, Any]:
        codes = str(layer.weight.dtype).removeprefix("torch.")
        return {"bits": 8, "codes": codes, "block_size": list(block_size(layer))}


def _has_kernel(layer: nn.Module) -> bool:
    weight: Any = layer.weight
    device = weight.device
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 9)
    return bool(device.type in ("xpu", "meta"))


def _fit(weight: Tensor, block: tuple[int, int], codes: torch.dtype, own: torch.dtype) -> Tensor:
    """The scale of each block, as dtype ``own`` can hold it; 1 where all is zero."""
    scales = largest(weight.abs(), block) / torch.finfo(codes).max
    if own == torch.float8_e8m0fnu:
        scales = scales.clamp(min=2.0**-126).log2().ceil().exp2()
    scales = scales.to(own).float()
    return torch.where(scales == 0, 1.0, scales)


def _codes(weight: Tensor, scales: Tensor, block: tuple[int, int], dtype: torch.dtype) -> Tensor:
    end = torch.finfo(dtype).max
    return multiply(weight.clone(), 1 / scales, block).clamp_(-end, end).to(dtype)


def _error(weight: Tensor, scales: Tensor, block: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The largest error in each block."""
    again = multiply(_codes(weight, scales, block, dtype).float(), scales, block)
    return largest((again - weight).abs(), block)


def _empty(linear: nn.Linear, block: Sequence[int] | None) -> nn.Module:
    from transformers.integrations.finegrained_fp8 import FP8Linear

    size: Any = None if block is None else tuple(block)
    with linear.weight.device:
        layer: nn.Module = FP8Linear(linear.in_features, linear.out_features, size)
    return layer
