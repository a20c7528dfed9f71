"""A token, for which each thing is asked once, is right in every standing of adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora.layers import one_token, recomputation
from quantlora.operations import reference

VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora with a bias": {"lora_bias": True},
    "dora": {"use_dora": True},
    "dora with a bias": {"use_dora": True, "lora_bias": True},
}


def wrapped(variant: str, dtype: torch.dtype = torch.float32) -> Any:
    """A layer with two adapters, of which the first is active."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16, dtype=dtype))
    fields: dict[str, Any] = {"r": 4, "target_modules": ["0"], "backend": "normalfloat"}
    for name in ("first", "second"):
        quantlora.wrap(model, adapter_name=name, **fields, **VARIANTS[variant])
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.3)
            if "magnitude" in key:
                parameter.mul_(torch.linspace(0.01, 2, 16))
    quantlora.set_adapter(model, "first")
    return model.eval()


def wanted(model: Any, x: Tensor, names: tuple[str, ...] = ("first",)) -> Tensor:
    layer = model[0]
    W, total = layer.dequantize().double(), x.double() @ layer.dequantize().double().t()
    y = total.clone()
    for name in names:
        tensors = {key: t.detach().double() for key, t in layer.adapter_tensors(name).items()}
        A, B, s = tensors["lora_A.weight"], tensors["lora_B.weight"], layer.scaling[name]
        m, bias = tensors.get("lora_magnitude_vector"), tensors.get("lora_B.bias", 0)
        gain = 1 if m is None else m / (W + s * B @ A).norm(dim=1)
        y += gain * (total + s * (x.double() @ A.t() @ B.t() + bias)) - total
    return y + layer.base_bias.double()


@torch.no_grad()
def off(model: Any, names: tuple[str, ...] = ("first",)) -> float:
    x = torch.randn(1, 3, 32, dtype=model[0].base_bias.dtype)
    return reference.relative(model(x), wanted(model, x, names))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_token_is_right(variant: str, dtype: torch.dtype) -> None:
    model = wrapped(variant, dtype)
    limit = 1e-6 if dtype == torch.float32 else 1e-2
    assert max(off(model) for _ in range(3)) < limit


STANDINGS: dict[str, tuple[Callable[[Any], object], tuple[str, ...]]] = {
    "another one": (lambda m: quantlora.set_adapter(m, "second"), ("second",)),
    "both": (lambda m: quantlora.set_adapter(m, ["first", "second"]), ("first", "second")),
    "none": (lambda m: quantlora.set_adapter(m, []), ()),
    "merged": (quantlora.merge, ("first",)),
    "unmerged": (lambda m: (quantlora.merge(m), quantlora.unmerge(m)), ("first",)),
    "one deleted": (lambda m: quantlora.delete_adapter(m, "second"), ("first",)),
}


@pytest.mark.parametrize("standing", STANDINGS)
@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_a_token_follows_the_adapters(variant: str, standing: str) -> None:
    model = wrapped(variant)
    reference_model, (change, names) = wrapped(variant), STANDINGS[standing]
    off(model)
    change(model)
    x = torch.randn(1, 32)
    with torch.no_grad():
        found = model(x)
    limit = 0.2 if standing == "merged" else 1e-6  # packed again after the merge
    reference_model[0].lora_A, reference_model[0].lora_B = model[0].lora_A, model[0].lora_B
    assert reference.relative(found, wanted(reference_model, x, names)) < limit


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_a_token_with_adapters_off_is_the_bases(variant: str) -> None:
    model = wrapped(variant)
    off(model)
    with quantlora.adapters_disabled(model):
        assert off(model, ()) < 1e-6
    assert off(model) < 1e-6


@pytest.mark.parametrize("variant", ["lora", "dora"])
@torch.no_grad()
def test_a_mixed_batch_after_tokens_is_right(variant: str) -> None:
    model, x = wrapped(variant), torch.randn(2, 32)
    off(model)
    with quantlora.mixed_batch(model, ["second", "first"]):
        found = model(x)
    rows = [wanted(model, x[i : i + 1], (name,)) for i, name in enumerate(("second", "first"))]
    assert reference.relative(found, torch.cat(rows)) < 1e-6
    assert off(model) < 1e-6


def test_the_frozen_product_is_not_wrapped_for_a_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped("dora")
    off(model)

    def never(*_: object) -> None:
        raise AssertionError("asked in a token")

    monkeypatch.setattr(recomputation, "standing", never)
    monkeypatch.setattr("quantlora.layers.adapter_module.standing", never)
    monkeypatch.setattr("quantlora.layers.linear.frozen_linear", never)
    assert off(model) < 1e-6
    assert one_token.inferred(model[0].train(), torch.randn(1, 32)) is None
