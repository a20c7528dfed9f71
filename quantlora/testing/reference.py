"""LoRA in float64 by the plain formula: what outputs and gradients are compared with."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from quantlora.layers.linear import LoraLinear


@dataclass(frozen=True)
class Result:
    """An output and the gradients of x, A and B for a given gradient of the output."""

    y: Tensor
    x: Tensor
    A: Tensor
    B: Tensor


def float64(tensor: Tensor) -> Tensor:
    """A float64 copy that belongs to nobody."""
    return tensor.detach().to(torch.float64, copy=True)


def output(lora: LoraLinear, weight: Tensor, x: Tensor) -> Tensor:
    """``x · weightᵀ + bias + Σ s · x · Aᵀ · Bᵀ`` over the active adapters, in float64."""
    y = float64(x) @ float64(weight).t()
    if lora.base_bias is not None:
        y = y + float64(lora.base_bias)
    for name in lora.active:
        A, B = (float64(factor.weight) for factor in lora.factors(name))
        y = y + lora.scaling[name] * (float64(x) @ A.t() @ B.t())
    return y


def merged_weight(lora: LoraLinear) -> Tensor:
    """``weight + Σ s · B · A`` over the active adapters, in float64."""
    weight = float64(lora.dequantize())
    for name in lora.active:
        A, B = (float64(factor.weight) for factor in lora.factors(name))
        weight = weight + lora.scaling[name] * (B @ A)
    return weight


def expected(lora: LoraLinear, weight: Tensor, x: Tensor, grad: Tensor) -> Result:
    """The reference for the one active adapter of ``lora``, its base being ``weight``."""
    (name,) = lora.active
    x, A, B = (float64(t).requires_grad_() for t in (x, *(f.weight for f in lora.factors(name))))
    y = x @ float64(weight).t() + lora.scaling[name] * (x @ A.t() @ B.t())
    y = y if lora.base_bias is None else y + float64(lora.base_bias)
    return Result(y.detach(), *torch.autograd.grad(y, (x, A, B), float64(grad)))


def measured(model: nn.Module, lora: LoraLinear, x: Tensor, grad: Tensor) -> Result:
    """What ``model`` gives for the same."""
    (name,) = lora.active
    x = x.detach().requires_grad_()
    y: Tensor = model(x)
    inputs = (x, *(factor.weight for factor in lora.factors(name)))
    return Result(y.detach(), *torch.autograd.grad(y, inputs, grad.to(y.dtype)))


def relative(actual: Tensor, wanted: Tensor) -> float:
    """``max |actual - wanted| / max |wanted|``: one wrong element among many shows."""
    assert actual.shape == wanted.shape, f"{tuple(actual.shape)} is not {tuple(wanted.shape)}"
    if not wanted.numel():
        return 0.0
    wanted = float64(wanted)
    error, scale = (float64(actual) - wanted).abs().max(), wanted.abs().max()
    return float(error / scale) if scale > 0 else float(error)


def errors(actual: Result, wanted: Result) -> dict[str, float]:
    """The relative error of each part."""
    names = [field.name for field in fields(Result)]
    return {name: relative(getattr(actual, name), getattr(wanted, name)) for name in names}
