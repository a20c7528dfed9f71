"""The model in float64 by plain torch: what each arm is checked with before it is timed.

Nothing of quantlora or PEFT computes here: weights are unpacked once, A and B are copied, and the
formulas are written out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import quantlora


class WrongNumbersError(RuntimeError):
    """An arm does not compute what it is to be timed for."""


class ReferenceLinear(nn.Module):
    """``x · Wᵀ + s · x · Aᵀ · Bᵀ``, its rows scaled by ``m / ‖W + sBA‖`` where there is an m."""

    def __init__(self, layer: quantlora.LoraLinear) -> None:
        super().__init__()
        self.register_buffer("W", layer.dequantize().double())
        (name,) = layer.active
        tensors = layer.adapter_tensors(name)
        self.A, self.B = (
            nn.Parameter(tensors[f"lora_{side}.weight"].detach().double()) for side in "AB"
        )
        m = tensors.get("lora_magnitude_vector")
        self.m = None if m is None else m.detach().double()
        self.s = layer.scaling[name]

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.W.t() + self.s * (x @ self.A.t() @ self.B.t())
        if self.m is None:
            return y
        norm = (self.W + self.s * self.B @ self.A).norm(dim=1).detach()
        return y * (self.m / norm)


def reference_of(model: nn.Module) -> nn.Module:
    """A float64 copy of ``model``, whose layers with adapters are `ReferenceLinear`."""
    layers = dict(quantlora.lora_layers(model))
    skeleton = copy.deepcopy(model, {id(layer): nn.Identity() for layer in layers.values()})
    for path, layer in layers.items():
        skeleton.set_submodule(path, ReferenceLinear(layer))
    return skeleton.double().eval()


def check(arm: str, actual: Tensor, wanted: Tensor, limit: float) -> float:
    """The relative error (Frobenius norm) of ``actual``, which must be below ``limit``."""
    error = float((actual.double() - wanted).norm() / wanted.norm())
    if not error < limit:
        raise WrongNumbersError(f"{arm}: off by {error:.2e} from float64, allowed {limit:.0e}")
    return error


def checked(arm: str, run: Callable[[], Tensor], wanted: Tensor, limit: float) -> float:
    with torch.no_grad():
        return check(arm, run(), wanted, limit)


def without_adapters(reference: nn.Module) -> nn.Module:
    """The same model, now with its frozen weights alone."""
    for layer in reference.modules():
        if isinstance(layer, ReferenceLinear):
            layer.s, layer.m = 0.0, None
    return reference
