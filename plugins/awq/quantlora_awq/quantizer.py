"""The quantizer ``awq`` (Lin et al. 2023, arXiv:2306.00978)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantlora import (
    AffineWeight,
    BackendError,
    InferenceCopy,
    Quantizer,
    fit_affine,
    grid_copy,
    refit_affine,
)
from quantlora_awq.layout import BITS, check, is_awq, read, write
from quantlora_awq.requires import GPTQMODEL

GROUP_SIZES = (128, 64, 32, 16)


class AwqQuantizer(Quantizer):
    """Reads every layer in the order "gemm"; packs to nearest, which is not yet AWQ."""

    name: ClassVar[str] = "awq"
    also_called: ClassVar[tuple[str, ...]] = ("autoawq",)
    module: ClassVar[str] = "gptqmodel"
    requires = (GPTQMODEL,)
    bits: ClassVar[tuple[int, ...]] = BITS
    # Rounds to nearest: never the choice where the user leaves it to us.
    preference: ClassVar[int] = -20

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        """None to name: a layer is known by its method, see `matches`."""
        return ()

    def matches(self, layer: nn.Module) -> bool:
        return is_awq(layer)

    def dequantize(self, layer: nn.Module) -> Tensor:
        return self.dequantize_to(layer, torch.float32)

    def dequantize_to(self, layer: nn.Module, dtype: torch.dtype) -> Tensor:
        """Rounded once, in ``dtype``: in float16 bit for bit what the library multiplies with."""
        weight = read(layer)
        own = weight.scales.dtype if dtype == weight.scales.dtype else torch.float32
        return (
            replace(weight, scales=weight.scales.to(own), zeros=weight.zeros.to(own))
            .dequantize()
            .to(dtype)
        )

    def inference_copy(self, layer: Any, dtype: torch.dtype) -> InferenceCopy:
        """Codes for torch's int4 kernel where it takes them, else floats."""
        shape, dense = self.shape(layer), partial(self.dequantize_to, layer, dtype)
        size = shape[1] // layer.scales.shape[0]
        return grid_copy(partial(read, layer), dense, shape, dtype, layer.bits, size)

    def prepare(self, layer: Any, path: str) -> None:
        check(layer, path)
        if hasattr(layer, "linear_mode"):
            layer.linear_mode = "train"  # else its first forward may repack the weight

    @torch.no_grad()
    def quantize(
        self,
        linear: nn.Linear,
        like: nn.Module | None = None,
        *,
        bits: int = 4,
        group_size: int | None = None,
        **options: Any,
    ) -> nn.Module:
        """Round to nearest, without AWQ's search for scales over calibration texts.

        Args:
            like: a layer whose class, bits, groups and dtypes are taken.
            bits: 2, 3, 4 or 8.
            group_size: inputs that share a scale: 128, 64, 32, 16 or -1, which is all; None: the
                largest that divides the inputs.
        """
        if like is not None:
            layer, weight = copy.deepcopy(like), refit_affine(linear.weight, read(like))
        else:
            size = _group_size([linear], bits, group_size)
            layer = _empty(linear, bits, size).to(linear.weight.device)
            weight = fit_affine(linear.weight, bits, size, dtype=_half(linear.weight.dtype))
        write(layer, weight)
        vars(layer).pop("bias", None)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        layer.register_buffer("bias", bias)
        return layer.train(linear.training)

    def quantize_layers(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Linear],
        *,
        bits: int = 4,
        group_size: int | None = None,
        **options: Any,
    ) -> dict[str, nn.Module]:
        """As `quantize`, all layers with one group size: a checkpoint has no other."""
        size = _group_size(layers.values(), bits, group_size)
        return super().quantize_layers(model, layers, bits=bits, group_size=size, **options)

    def group_size(self, layer: nn.Module) -> int | None:
        return read(layer).group_size

    def affine(self, layer: nn.Module) -> AffineWeight | None:
        return read(layer)

    def checkpoint_config(
        self, layers: Mapping[str, nn.Module], linears: Mapping[str, nn.Module]
    ) -> dict[str, Any]:
        settings = {tuple(self.describe(layer).items()) for layer in layers.values()}
        if len(settings) > 1:
            raise BackendError("an AWQ checkpoint has one bit width and one group size.")
        return {
            "quant_method": "awq",
            **dict(settings.pop()),
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": [path for path in linears if path not in layers] or None,
        }

    def describe(self, layer: Any) -> dict[str, Any]:
        return {"bits": layer.bits, "group_size": self.group_size(layer)}


def _group_size(linears: Iterable[nn.Linear], bits: int, asked: int | None) -> int:
    """The group size for all ``linears``; None asked for: the largest that they can have."""
    usable = [*GROUP_SIZES, -1]
    for linear in linears:
        columns, rows = linear.weight.shape
        if columns % 8 or bits not in BITS:
            raise BackendError(
                f"AWQ packs outputs by eight in 2, 3, 4 or 8 bits: a weight of {columns} x {rows} "
                f"in {bits} bits cannot be. Leave the layer out with exclude_modules."
            )
        usable = [size for size in usable if size == -1 or rows % size == 0]
    if asked not in (None, *usable):
        raise BackendError(f"group_size={asked}: these inputs can have {usable}.")
    return usable[0] if asked is None else asked


def _empty(linear: nn.Linear, bits: int, group_size: int) -> nn.Module:
    """GPTQModel's plain torch kernel."""
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear

    layer: nn.Module = AwqTorchLinear(
        bits=bits, group_size=group_size, sym=False, desc_act=False,
        in_features=linear.in_features, out_features=linear.out_features, register_buffers=True,
    )  # fmt: skip
    return layer


def _half(dtype: torch.dtype) -> torch.dtype:
    """That of the scales: the kernel has no other."""
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.float16
