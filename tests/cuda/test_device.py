"""Outputs and gradients against float64, in every order, on the device that there is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import quantlora
from tests.cuda.models import BACKENDS, LIMITS, formula, gradients, inputs, off, wrapped

pytestmark = pytest.mark.filterwarnings("ignore:backend='gptq' without calibration")
VARIANTS: dict[str, dict[str, Any]] = {"lora": {}, "dora": {"use_dora": True}}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def token(model: nn.Module, device: str, dtype: torch.dtype) -> None:
    x = inputs(device, dtype, rows=1)
    with torch.no_grad():
        assert off(model.eval()(x), formula(model, x)) < LIMITS[dtype]


def step(model: nn.Module, device: str, dtype: torch.dtype) -> None:
    """Gradients of A, B, m and of the input."""
    x = inputs(device, dtype).requires_grad_()
    found = gradients(model, model.train()(x).float().square().sum())
    mine, x.grad = x.grad, None
    wanted = gradients(model, formula(model, x).square().sum())
    assert found.keys() == wanted.keys()
    for name in found:
        assert off(found[name], wanted[name].double()) < 2 * LIMITS[dtype], name
    assert mine is not None
    assert x.grad is not None
    assert off(mine, x.grad.double()) < 2 * LIMITS[dtype]


@pytest.mark.parametrize("order", ["token, step", "step, token, step"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_and_gradients_in_every_order(
    backend: str, dtype: torch.dtype, variant: str, order: str, device: str
) -> None:
    model = wrapped(backend, device, dtype, **VARIANTS[variant])
    for action in order.split(", "):
        {"token": token, "step": step}[action](model, device, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mixed_batch_gives_each_sample_its_own(backend: str, device: str) -> None:
    model = wrapped(backend, device, names=("a", "b")).eval()
    names, x = ("b", "__base__", "a", "b"), inputs(device, torch.float32, rows=4)
    with torch.no_grad(), quantlora.mixed_batch(model, names):
        found = model(x)
    for i, name in enumerate(names):
        wanted = formula(model, x[i : i + 1], None if name == "__base__" else name)
        assert off(found[i : i + 1], wanted) < LIMITS[torch.float32]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_merge_and_the_way_back(backend: str, variant: str, device: str) -> None:
    model = wrapped(backend, device, **VARIANTS[variant]).eval()
    x = inputs(device, torch.float32)
    with torch.no_grad():
        before, wanted = model(x), formula(model, x)
        quantlora.merge(model, mode="dequantize")
        assert off(model(x), wanted) < LIMITS[torch.float32]
        quantlora.unmerge(model)
        assert torch.equal(model(x), before)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_it_gives_the_same_gradients(backend: str, variant: str, device: str) -> None:
    model = wrapped(backend, device, **VARIANTS[variant])
    compiled, x = torch.compile(model), inputs(device, torch.float32)
    found = gradients(model, compiled(x).square().sum())
    wanted = gradients(model, formula(model, x).square().sum())
    assert all(off(found[name], wanted[name].double()) < 1e-4 for name in wanted)
