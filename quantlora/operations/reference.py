"""LoRA in float64 by the plain formula: what outputs and gradients are compared with.

    y = x · (W + Σ ΔW)ᵀ + bias + Σ Δbias        W: the dequantized weight, from before any merge

For LoRA itself ``ΔW = s · B · A`` is written out here; a variant says its own (`delta_weight`), to
which its forward is then held.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from quantlora.layers.linear import LoraLinear
from quantlora.operations.results import hold

#: The output, and gradients by the name of what they belong to.
Result = dict[str, Tensor]


def float64(tensor: Tensor) -> Tensor:
    """A float64 copy that belongs to nobody."""
    return tensor.detach().to(torch.float64, copy=True)


def float64_adapters(lora: LoraLinear) -> LoraLinear:
    """A copy of ``lora`` with float64 adapters, around the very same base."""
    bases = [lora.base_layer, *(base for base, _ in lora.bases_before_merge)]
    same: list[Any] = [module for base in bases for module in base.modules()]
    same += [tensor for base in bases for tensor in (*base.parameters(), *base.buffers())]
    twin: LoraLinear = copy.deepcopy(lora, {id(kept): kept for kept in (*same, lora.quantizer)})
    for name in twin.adapters:
        for tensor in twin.adapter_tensors(name).values():
            tensor.data = tensor.data.double()
    return twin


def update(lora: LoraLinear, name: str, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """``(ΔW, Δbias)`` of an adapter over the base ``weight``, all of them float64."""
    if type(lora) is not LoraLinear:
        return lora.delta_weight(name, weight), lora.delta_bias(name, weight)
    (A, B), s = lora.factors(name), lora.scaling[name]
    return s * (B.weight @ A.weight), None if B.bias is None else s * B.bias


@torch.no_grad()
def merged_weight(lora: LoraLinear, names: Sequence[str]) -> Tensor:
    """``W + Σ ΔW`` over the adapters ``names``."""
    base, quantizer = lora.plain_base
    weight, twin = float64(quantizer.dequantize(base)), float64_adapters(lora)
    return weight + sum(update(twin, name, weight)[0] for name in names)


@torch.no_grad()
def output(
    lora: LoraLinear, x: Tensor, names: Sequence[str], weight: Tensor | None = None
) -> Tensor:
    """The output with the adapters ``names``; ``weight`` stands for the base's own."""
    return _output(float64_adapters(lora), float64(x), names, weight)


def training_step(lora: LoraLinear, weight: Tensor, x: Tensor, grad: Tensor) -> Result:
    """Output and gradients of the active adapters, for the gradient ``grad`` of the output."""
    twin, x = float64_adapters(lora), float64(x).requires_grad_()
    y = _output(twin, x, lora.active, weight)
    inputs = {"x": x, **trained_tensors(twin)}
    grads = torch.autograd.grad(y, list(inputs.values()), float64(grad))
    return {"output": y.detach(), **dict(zip(inputs, grads, strict=True))}


def measured_step(model: nn.Module, lora: LoraLinear, x: Tensor, grad: Tensor) -> Result:
    """What ``model`` gives for the same; a gradient that does not arrive is left out."""
    x = x.detach().requires_grad_()
    y: Tensor = model(x)
    inputs = {"x": x, **trained_tensors(lora)}
    grads = torch.autograd.grad(y, list(inputs.values()), grad.to(y.dtype), allow_unused=True)
    found = {name: grad for name, grad in zip(inputs, grads, strict=True) if grad is not None}
    return {"output": y.detach(), **found}


def trained_tensors(lora: LoraLinear) -> dict[str, nn.Parameter]:
    """The trained parameters of the active adapters, by adapter and name in its file."""
    return {
        f"{name}: {key}": tensor
        for name in lora.active
        for key, tensor in lora.adapter_tensors(name).items()
        if tensor.requires_grad
    }


def relative(actual: Tensor, wanted: Tensor) -> float:
    """``max |actual - wanted| / max |wanted|``: one wrong element among many shows."""
    shapes = tuple(actual.shape), tuple(wanted.shape)
    hold(shapes[0] == shapes[1], f"the shape {shapes[0]} is not {shapes[1]}")
    if not wanted.numel():
        return 0.0
    wanted = float64(wanted)
    error, scale = (float64(actual) - wanted).abs().max(), wanted.abs().max()
    return float(error / scale) if scale > 0 else float(error)


def distance(actual: Tensor, wanted: Tensor) -> float:
    """``‖actual - wanted‖ / ‖wanted‖`` (Frobenius)."""
    wanted = float64(wanted)
    return float((float64(actual) - wanted).norm() / wanted.norm())


def errors(actual: Result, wanted: Result) -> dict[str, float]:
    """The relative error of each part; infinite for a gradient that did not arrive."""
    return {
        name: relative(actual[name], expected) if name in actual else float("inf")
        for name, expected in wanted.items()
    }


def _output(lora: LoraLinear, x: Tensor, names: Sequence[str], weight: Tensor | None) -> Tensor:
    base, quantizer = lora.plain_base
    total = plain = float64(quantizer.dequantize(base) if weight is None else weight)
    bias = quantizer.bias(base)
    y = torch.zeros((), dtype=torch.float64, device=x.device) if bias is None else float64(bias)
    for name in names:
        delta, delta_bias = update(lora, name, plain)
        total, y = total + delta, y if delta_bias is None else y + delta_bias
    return x @ total.t() + y
