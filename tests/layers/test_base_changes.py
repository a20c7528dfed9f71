"""The base changes under an adapter: the right gradient, or an error as torch gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import quantlora
from quantlora.errors import AdapterError, ChangedBaseError, LayerError
from tests.layers.variants import BACKENDS, VARIANTS, Variant, wrapped
from tests.tools.expert_models import Experts
from tests.tools.peft_oracle import relative

INPLACE: dict[str, Callable[[nn.Module], Any]] = {
    "mul_": lambda base: base.weight.mul_(2),
    "load_state_dict": lambda base: base.load_state_dict(
        {name: one * 2 for name, one in base.state_dict().items()}
    ),
}


def assigned(module: nn.Module, name: str, value: Callable[[Tensor], Tensor]) -> None:
    parameter = module.get_parameter(name)
    parameter.data = value(parameter.data)


#: Changes by ``.data``, which no version counter sees.
UNSEEN: dict[str, Callable[[nn.Module, str], Any]] = {
    "other": lambda module, name: assigned(module, name, lambda data: data * 2),
    "twice": lambda module, name: [assigned(module, name, lambda data: data * 2) for _ in "ab"],
    "in place": lambda module, name: module.get_parameter(name).data.mul_(2),
}


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names, given = zip(
        *((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True
    )
    found = torch.autograd.grad(loss, given, allow_unused=True)
    return {n: one for n, one in zip(names, found, strict=True) if one is not None}


@pytest.mark.parametrize("change", INPLACE)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_change_in_place_before_backward_is_an_error(variant: Variant, change: str) -> None:
    model, x = wrapped("auto", variant)
    loss = model(x.requires_grad_()).square().sum()
    with torch.no_grad():
        INPLACE[change](model[1].base_layer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("change", UNSEEN)
@pytest.mark.parametrize("variant", VARIANTS)
def test_other_values_by_data_before_backward_are_an_error(variant: Variant, change: str) -> None:
    model, x = wrapped("auto", variant)
    loss = model(x.requires_grad_()).square().sum()
    UNSEEN[change](model, "1.base_layer.weight")
    with pytest.raises(ChangedBaseError, match=r"1: weight was given other values \(by its .data"):
        loss.backward()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_values_in_other_memory_have_the_same_gradient(variant: Variant) -> None:
    model, x = wrapped("auto", variant)
    wanted = gradients(model, model(x).square().sum())
    loss = model(x).square().sum()
    assigned(model, "1.base_layer.weight", torch.clone)
    found = gradients(model, loss)
    assert found
    assert all(torch.equal(found[name], one) for name, one in wanted.items())


@pytest.mark.parametrize("change", UNSEEN)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_forward_after_a_change_by_data_knows_no_older_norm(
    variant: Variant, change: str
) -> None:
    model, x = wrapped("auto", variant)
    fresh, _ = wrapped("auto", variant)
    model(x)
    for one in (model, fresh):
        UNSEEN[change](one, "1.base_layer.weight")
    assert torch.equal(model(x), fresh(x))


@pytest.mark.parametrize("variant", VARIANTS)
def test_another_weight_by_functional_call_has_its_own_gradient(variant: Variant) -> None:
    model, x = wrapped("auto", variant)
    other = torch.randn_like(model[1].base_layer.weight)
    exchanged = functional_call(model, {"1.base_layer.weight": other}, (x,))
    found = gradients(model, exchanged.square().sum())
    with torch.no_grad():
        model[1].base_layer.weight.copy_(other)
    wanted = gradients(model, model(x).square().sum())
    assert found.keys() == wanted.keys()
    assert all(relative(found[name], wanted[name]) <= 1e-5 for name in wanted)


@pytest.mark.parametrize("change", INPLACE)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_forward_after_a_change_knows_no_older_norm(variant: Variant, change: str) -> None:
    model, x = wrapped("auto", variant)
    fresh, _ = wrapped("auto", variant)
    model(x)
    for one in (model, fresh):
        with torch.no_grad():
            INPLACE[change](one[1].base_layer)
    assert torch.equal(model(x), fresh(x))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_base_that_is_trained_gets_its_gradient(variant: Variant) -> None:
    model, x = wrapped("auto", variant)
    weight = model[1].base_layer.weight.requires_grad_(True)
    found = gradients(model, model(x).square().sum())["1.base_layer.weight"]
    direction, eps = torch.randn_like(weight), 1e-6
    with torch.no_grad():  # DoRA takes the norm as a constant, so the directional slope is not its
        ends = [
            functional_call(model, {"1.base_layer.weight": weight + e * direction}, (x,))
            for e in (eps, -eps)
        ]
    slope = (ends[0].square().sum() - ends[1].square().sum()) / (2 * eps)
    assert found.abs().sum() > 0
    assert variant.name == "dora" or relative((found * direction).sum()[None], slope[None]) <= 1e-5


@pytest.mark.parametrize("backend", ["bitsandbytes_4bit"])
def test_a_packed_base_cannot_be_trained(backend: str) -> None:
    plain = nn.Sequential(nn.Linear(64, 64))
    options = {"quant_storage": torch.float32}
    model = quantlora.wrap(plain, backend=backend, r=2, quantize_options=options)
    model.requires_grad_(True)
    with pytest.raises(LayerError, match="is packed in format 'bitsandbytes_4bit', which has none"):
        model(torch.randn(2, 64))


def experts() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(Experts(False)).double()
    fields: dict[str, Any] = {"target_modules": [], "target_parameters": ["w"]}
    return quantlora.wrap(model, r=2, init_lora_weights=False, **fields), torch.randn(5, 6).double()


@pytest.mark.parametrize("name", ["0.base_layer.w", "0.lora_A.default.w.weight"])
def test_adapted_parameters_by_functional_call(name: str) -> None:
    model, x = experts()
    own = model.get_parameter(name)
    other = torch.randn_like(own, requires_grad=own.requires_grad)
    found = gradients(model, functional_call(model, {name: other}, (x,)).square().sum())
    with torch.no_grad():
        own.copy_(other)
    wanted = gradients(model, model(x).square().sum())
    assert found
    assert all(relative(found[key], wanted[key]) <= 1e-9 for key in found)


@pytest.mark.parametrize("name", ["0.base_layer.w", "0.lora_A.default.w.weight"])
def test_adapted_parameters_changed_in_place(name: str) -> None:
    model, x = experts()
    loss = model(x).square().sum()
    with torch.no_grad():
        model.get_parameter(name).mul_(2)
    with pytest.raises(ChangedBaseError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("change", UNSEEN)
@pytest.mark.parametrize("name", ["0.base_layer.w", "0.lora_A.default.w.weight"])
def test_adapted_parameters_changed_by_data(name: str, change: str) -> None:
    model, x = experts()
    loss = model(x).square().sum()
    UNSEEN[change](model, name)
    with pytest.raises(ChangedBaseError, match="was given other values"):
        loss.backward()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("side", ["lora_A", "lora_B"])
def test_an_adapter_changed_by_data_before_it_is_computed_again(side: str, reentrant: bool) -> None:
    model, x = wrapped("auto", VARIANTS[0])
    loss = checkpoint(model, x.requires_grad_(), use_reentrant=reentrant).square().sum()
    UNSEEN["other"](model, f"1.{side}.default.weight")
    with pytest.raises(AdapterError, match="was changed in place"):
        loss.backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_merging_between_forward_and_backward_changes_no_gradient(backend: str) -> None:
    model, x = wrapped(backend, VARIANTS[0])
    wanted = gradients(model, model(x).square().sum())
    loss = model(x).square().sum()
    quantlora.merge(model)
    found = gradients(model, loss)
    assert all(torch.equal(found[name], one) for name, one in wanted.items())
