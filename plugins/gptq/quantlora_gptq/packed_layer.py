"""Making layers of the installed library from a float layer."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import torch
from torch import Tensor, nn

from quantlora import (
    AffineWeight,
    BackendError,
    fit_affine,
    pack_bits,
    refit_affine,
    unpack_bits,
)
from quantlora_gptq.dequantize import to_affine
from quantlora_gptq.layout import BITS, layout, tensor
from quantlora_gptq.requires import GPTQMODEL

#: Group sizes that every kernel has; -1 is one group for all inputs.
GROUP_SIZES = (128, 64, 32, 16)


def round_like(linear: nn.Linear, like: nn.Module) -> nn.Module:
    """``linear`` in ``like``'s class, bits, groups and dtypes.

    Each group keeps ``like``'s scale, its zero-point moved by whole steps (which holds QA-LoRA's
    updates, rounded), or gets a new grid where that errs less.
    """
    layer = copy.deepcopy(like)
    grid = refit_affine(linear.weight, to_affine(like), lowest_zero=1)
    _fill(layer, grid, layout(like).zero_offset)
    return _with_bias(layer, linear)


def round_new(
    linear: nn.Linear, bits: int = 4, group_size: int | None = None, sym: bool = True
) -> nn.Module:
    """``linear`` rounded to nearest, as a layer of GPTQModel; of AutoGPTQ where that is alone."""
    size = check_settings({"weight": linear}, bits, group_size)
    layer = _empty(linear, bits, size).to(linear.weight.device)
    dtype = _scales_dtype(linear)
    grid = fit_affine(linear.weight, bits, size, sym=sym, dtype=dtype, lowest_zero=1)
    _fill(layer, grid, layout(layer).zero_offset)
    return _with_bias(layer, linear)


def check_settings(layers: dict[str, nn.Linear], bits: int, group_size: int | None) -> int:
    """The group size to use for ``layers``; `BackendError` where it or ``bits`` cannot be.

    None is the largest common one of 128, 64, 32 and 16 that divides, else -1.
    """
    if bits not in BITS:
        raise BackendError(f"GPTQ has 2, 3, 4 and 8 bits, got bits={bits!r}.")
    for path, linear in layers.items():
        if any(size * bits % 32 for size in linear.weight.shape):
            shape = " x ".join(map(str, linear.weight.shape))
            raise BackendError(
                f"{path}: a weight of {shape} does not fill whole 32-bit words at {bits} bits; "
                f"leave the layer out with exclude_modules."
            )
    usable = [s for s in GROUP_SIZES if all(not layer.in_features % s for layer in layers.values())]
    if group_size is None:
        return usable[0] if usable else -1
    for path, linear in layers.items():
        if group_size != -1 and (group_size < 1 or linear.in_features % group_size):
            raise BackendError(
                f"{path}: group_size={group_size} does not divide its {linear.in_features} inputs; "
                f"{', '.join(map(str, [*usable, -1]))} can be used for all these layers."
            )
    return group_size


def checkpoint_tensors(layer: nn.Module, checkpoint_format: str | None) -> dict[str, Tensor]:
    """The layer's tensors as a checkpoint has them: v1 zero-points less one.

    GPTQModel adds the one when it loads; AutoGPTQ keeps them as they are.
    """
    form, tensors = layout(layer), dict(layer.state_dict())
    if checkpoint_format == "gptq" and form.zero_offset == 0:
        whole = unpack_bits(tensor(layer, "qzeros"), form.bits).int()
        tensors["qzeros"] = pack_bits(_lacking(whole, 1, form.bits), form.bits)
    return tensors


def _lacking(zero_points: Tensor, offset: int, bits: int) -> Tensor:
    """Zero-points as they are stored: less ``offset``, modulo ``2 ** bits``."""
    lacking: Tensor = (zero_points.to(torch.int32) - offset) & (2**bits - 1)
    return lacking


def _fill(layer: nn.Module, grid: AffineWeight, zero_offset: int) -> None:
    """Write codes, scales and zero-points into the layer's buffers."""
    layer.qweight = pack_bits(grid.codes, grid.bits).t().contiguous()
    layer.qzeros = pack_bits(_lacking(grid.zeros.t(), zero_offset, grid.bits), grid.bits)
    layer.scales = grid.scales.t().contiguous()


def _with_bias(layer: nn.Module, linear: nn.Linear) -> nn.Module:
    """``layer`` with a copy of the bias of ``linear``, which may have gained or lost one."""
    if "bias" in vars(layer):
        del layer.bias
    bias = None if linear.bias is None else linear.bias.detach().clone()
    layer.register_buffer("bias", bias)
    return layer.train(linear.training)


def _scales_dtype(linear: nn.Linear) -> torch.dtype:
    dtype = linear.weight.dtype
    return torch.float32 if dtype == torch.float64 else dtype


def _empty(linear: nn.Linear, bits: int, group_size: int) -> nn.Module:
    if GPTQMODEL.check():
        return _empty_gptqmodel(linear, bits, group_size)
    from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear

    layer: nn.Module = QuantLinear(
        bits, group_size, linear.in_features, linear.out_features, False,
        weight_dtype=_scales_dtype(linear),
    )  # fmt: skip
    return layer


def _empty_gptqmodel(linear: nn.Linear, bits: int, group_size: int) -> nn.Module:
    """Its plain torch kernel, under the names it has had since 2.0."""
    kernels = importlib.import_module("gptqmodel.nn_modules.qlinear.torch")
    kernel: Any = getattr(kernels, "TorchLinear", None) or kernels.TorchQuantLinear
    layer: nn.Module = kernel(
        bits=bits, group_size=group_size, sym=True, desc_act=False, bias=False,
        in_features=linear.in_features, out_features=linear.out_features,
        pack_dtype=torch.int32, register_buffers=True,
    )  # fmt: skip
    layer.optimized = True  # type: ignore[assignment]  # post_init would compile it
    layer.post_init()  # type: ignore[operator]
    return layer
