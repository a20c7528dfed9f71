"""`torch.func` and forward-mode differentiation, against plain autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap

import quantlora
from tests.layers.variants import BACKENDS, VARIANTS, Variant, wrapped
from tests.tools.expert_models import Experts
from tests.tools.peft_oracle import relative

MODELS: dict[str, Any] = {
    f"{backend}-{variant.name}": (backend, variant) for backend in BACKENDS for variant in VARIANTS
}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Sequential, Tensor]:
    return wrapped(*MODELS[request.param])


def split(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    return trained, {n: p.detach() for n, p in model.named_parameters() if n in trained}


def test_grad_is_that_of_backward(case: tuple[nn.Sequential, Tensor]) -> None:
    model, x = case
    trained, _ = split(model)
    found = grad(lambda given: functional_call(model, given, (x,)).square().sum())(trained)
    model(x).square().sum().backward()
    for name, one in found.items():
        assert relative(one, model.get_parameter(name).grad) <= 1e-5


def test_vmap_over_samples_gives_each_its_gradient(case: tuple[nn.Sequential, Tensor]) -> None:
    model, x = case
    trained, _ = split(model)

    def loss(given: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, given, (sample[None],)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(trained, x)
    for i, sample in enumerate(x):
        wanted = grad(loss)(trained, sample)
        assert all(relative(found[n][i], wanted[n]) <= 1e-5 for n in wanted)


def test_jvp_is_the_slope(case: tuple[nn.Sequential, Tensor]) -> None:
    """Twice backward gives it too: the derivative of vᵀJ by v."""
    model, x = case
    tangent = torch.randn_like(x)
    _, found = jvp(model, (x,), (tangent,))
    y = x.clone().requires_grad_()
    v = torch.ones_like(model(y), requires_grad=True)
    (row,) = torch.autograd.grad(model(y), y, v, create_graph=True)
    (wanted,) = torch.autograd.grad(row, v, tangent)
    assert relative(found.detach(), wanted) <= 1e-5


def test_forward_mode_outside_of_func_is_the_same(case: tuple[nn.Sequential, Tensor]) -> None:
    model, x = case
    tangent = torch.randn_like(x)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(model(forward_ad.make_dual(x, tangent))).tangent
    assert relative(found.detach(), jvp(model, (x,), (tangent,))[1].detach()) <= 1e-6


def test_an_ensemble_of_adapters_is_one_vmap() -> None:
    model, x = wrapped("auto", VARIANTS[2])
    trained, _ = split(model)
    stack = {name: torch.stack([one, 2 * one]) for name, one in trained.items()}
    found = vmap(lambda given: functional_call(model, given, (x,)))(stack)
    for i, factor in enumerate((1, 2)):
        wanted = functional_call(model, {n: factor * one for n, one in trained.items()}, (x,))
        assert relative(found[i].detach(), wanted.detach()) <= 1e-9


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda one: one.name)
def test_the_gradient_of_the_base_weight(variant: Variant) -> None:
    model, x = wrapped("auto", variant)
    name = "1.base_layer.weight"
    weight = model.get_parameter(name)
    found = grad(lambda w: functional_call(model, {name: w}, (x,)).square().sum())(weight.detach())
    weight.requires_grad_(True)
    model(x).square().sum().backward()
    assert weight.grad is not None
    assert relative(found, weight.grad) <= 1e-9


@pytest.mark.parametrize("kind", ["experts", "conv", "embedding"])
def test_other_layers(kind: str) -> None:
    torch.manual_seed(0)
    fields: dict[str, Any] = {"target_modules": ["0"], "use_dora": kind != "experts"}
    if kind == "experts":
        fields |= {"target_modules": [], "target_parameters": ["w"]}
    layer: dict[str, Any] = {
        "experts": Experts(False),
        "conv": nn.Conv1d(6, 4, 1),
        "embedding": nn.Embedding(9, 4),
    }
    x = torch.tensor([[1, 2], [3, 0]]) if kind == "embedding" else torch.randn(2, 6, 6)
    x = x[0] if kind == "experts" else x
    model = quantlora.wrap(
        nn.Sequential(layer[kind]).double(), r=2, init_lora_weights=False, **fields
    )
    x = x if kind == "embedding" else x.double()
    trained, _ = split(model)
    found = grad(lambda given: functional_call(model, given, (x,)).square().sum())(trained)
    model(x).square().sum().backward()
    assert all(relative(found[n], model.get_parameter(n).grad) <= 1e-9 for n in found)


def test_a_second_derivative() -> None:
    model, x = wrapped("normalfloat", VARIANTS[0])
    tangent = torch.randn_like(x)

    def loss(one: Tensor) -> Tensor:
        return model(one).sin().sum()

    _, found = jvp(grad(loss), (x,), (tangent,))
    _, wanted = torch.autograd.functional.hvp(loss, x, tangent)
    assert relative(found.detach(), wanted) <= 1e-4
