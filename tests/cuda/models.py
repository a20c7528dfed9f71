"""Models for the tests of a device, and what they compute by the formulas, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora

BACKENDS: dict[str, dict[str, Any]] = {
    "float": {},
    "normalfloat": {"bits": 4},
    "bitsandbytes_4bit": {},
    "bitsandbytes_8bit": {},
    "gptq": {"bits": 4, "group_size": 32},
}
LIBRARIES = {"bitsandbytes_4bit": "bitsandbytes", "bitsandbytes_8bit": "bitsandbytes",
             "gptq": "gptqmodel"}  # fmt: skip
#: Relative to float64, of outputs and gradients.
LIMITS = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def wrapped(
    backend: str,
    device: str,
    dtype: torch.dtype = torch.float32,
    names: tuple[str, ...] = ("default",),
    **fields: Any,
) -> nn.Module:
    """One linear layer (64, 128) on ``device``, packed there, with adapters whose B is not zero."""
    if backend in LIBRARIES:
        pytest.importorskip(LIBRARIES[backend])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 64, dtype=dtype)).to(device)
    if backend != "float":
        options = BACKENDS[backend]
        quantlora.quantize(model, backend=backend, quantize_options=options, target_modules=["0"])
    given = {"r": 4, "target_modules": ["0"], "init_lora_weights": False} | fields
    for name in names:
        quantlora.wrap(model, adapter_name=name, **given)
    return model


def inputs(device: str, dtype: torch.dtype, rows: int = 6) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(rows, 128, dtype=dtype, device=device)


def formula(model: nn.Module, x: Tensor, name: str | None = "default") -> Tensor:
    """``x · W'ᵀ + b`` in float64; W' is W + sBA, its rows of the length m in DoRA."""
    layer: Any = model[0]
    whole = layer.dequantize().double()
    bias = layer.base_bias.double()
    if name is not None:
        tensors = layer.adapter_tensors(name)
        A, B = (tensors[f"lora_{side}.weight"].double() for side in "AB")
        whole = whole + layer.scaling[name] * (B @ A)
        if (m := tensors.get("lora_magnitude_vector")) is not None:
            whole = whole * (m.double() / whole.norm(dim=1).detach())[:, None]
    return x.double() @ whole.t() + bias


def off(found: Tensor, wanted: Tensor) -> float:
    """The relative error in the Frobenius norm."""
    return float((found.double() - wanted).norm() / wanted.norm())


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Of all trained parameters; theirs are cleared afterwards."""
    loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found
