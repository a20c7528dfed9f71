"""Copies of packed weights for inference: right in every order, bounded, and gone when trained."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora.operations import reference

BACKENDS = ["normalfloat", "bitsandbytes_4bit"]


@pytest.fixture(autouse=True)
def _own_memory() -> Iterator[None]:
    limit = quantlora.inference_memory().limit
    gc.collect()
    yield
    quantlora.inference_memory(limit)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param.startswith("bitsandbytes"):
        pytest.importorskip("bitsandbytes")
    return str(request.param)


def wrapped(backend: str, dtype: torch.dtype = torch.bfloat16, **fields: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 64, dtype=dtype))
    fields = {"r": 4, "target_modules": ["0"], "init_lora_weights": False} | fields
    return quantlora.wrap(model, backend=backend, **fields).eval()


def token(rows: int = 1, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(rows, 128, dtype=dtype)


def generate(model: nn.Module, rows: int = 1, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    with torch.no_grad():
        return model(token(rows, dtype))


def train(model: nn.Module) -> None:
    model.train()(token(3)).float().sum().backward()
    model.eval()


def kept(model: nn.Module) -> bool:
    """Whether a copy of the base was there; it is freed by asking."""
    return quantlora.free_inference_copies(model) > 0


def error(model: nn.Module, rows: int = 1, dtype: torch.dtype = torch.bfloat16) -> float:
    """How far the output is from the formula in float64."""
    lora, x = model[0], token(rows, dtype).double()
    wanted = x @ lora.dequantize().double().t() + lora.base_bias.double()
    if lora.enabled:
        A, B = (factor.weight.detach().double() for factor in lora.factors("default"))
        wanted = wanted + lora.scaling["default"] * (x @ A.t() @ B.t())
    return reference.relative(generate(model, rows, dtype), wanted)


def right(model: nn.Module) -> bool:
    return error(model) < 0.02


STEPS: dict[str, Callable[[nn.Module], object]] = {
    "generate": generate,
    "train": train,
    "disable": lambda model: quantlora.disable_adapters(model),
    "enable": lambda model: quantlora.enable_adapters(model),
    "state_dict": lambda model: model.load_state_dict(model.state_dict(), strict=False),
    "deepcopy": copy.deepcopy,
    "float32 and back": lambda model: model[0].lora_A.float().bfloat16(),
}
ORDERS = [
    ["generate", "train", "generate"],
    ["generate", "state_dict", "generate", "train"],
    ["train", "generate", "deepcopy", "train"],
    ["generate", "disable", "generate", "enable"],
    ["generate", "float32 and back"],
]


@pytest.mark.parametrize("order", ORDERS, ids=", ".join)
def test_the_output_is_right_after_every_step(backend: str, order: list[str]) -> None:
    model = wrapped(backend)
    for step in order:
        STEPS[step](model)
        assert right(model), step


def test_a_merge_and_the_way_back_are_right(backend: str) -> None:
    model = wrapped(backend)
    before = generate(model)
    quantlora.merge(model, mode="dequantize")
    assert reference.relative(generate(model), reference.float64(before)) < 0.03
    quantlora.unmerge(model)
    assert torch.equal(generate(model), before)


def test_gradients_are_those_of_never_having_generated(backend: str) -> None:
    """Bit for bit, and the packed tensors too."""
    found = []
    for generates in (False, True):
        model = wrapped(backend)
        if generates:
            generate(model)
        train(model)
        found.append([p.grad for p in model.parameters() if p.grad is not None])
        found[-1] += [t.data for t in model[0].base_layer.state_dict().values()]
    assert len(found[0]) > 2
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_training_drops_the_copy(backend: str) -> None:
    model = wrapped(backend)
    generate(model)
    train(model)
    assert not kept(model)


def test_training_mode_makes_none(backend: str) -> None:
    """A checkpointed forward runs without gradients, and again with them in backward."""
    model = wrapped(backend).train()
    generate(model)
    assert not kept(model)


@pytest.mark.parametrize("changed", ["in place", "another tensor", "other memory"])
def test_a_changed_weight_is_seen(changed: str) -> None:
    model, other = wrapped("normalfloat"), nn.Sequential(nn.Linear(128, 64, dtype=torch.bfloat16))
    quantlora.quantize(other, backend="normalfloat", target_modules=["0"])
    generate(model)
    base, codes = model[0].base_layer, other[0].packed
    if changed == "in place":
        base.packed.copy_(codes)
    elif changed == "another tensor":
        base.packed = codes
    else:
        base.packed.data = codes
    assert right(model)


def test_many_rows_make_no_copy_and_are_right(backend: str) -> None:
    model = wrapped(backend)
    assert error(model, rows=100) < 0.02
    assert not kept(model)


def test_floats_of_a_copy_are_those_of_the_weight(backend: str) -> None:
    """In float32 nothing is rounded otherwise than in training."""
    assert error(wrapped(backend, torch.float32), dtype=torch.float32) < 1e-5


def test_a_limit_of_zero_makes_none(backend: str) -> None:
    model = wrapped(backend)
    generate(model)
    assert quantlora.inference_memory(0).used == 0
    assert right(model)
    assert not kept(model)


def test_layers_beyond_the_limit_do_without() -> None:
    one, two = wrapped("normalfloat"), wrapped("normalfloat")
    used = quantlora.inference_memory().used
    quantlora.inference_memory(used + 128 * 64 * 2)
    assert right(one)
    assert right(two)
    assert kept(one)
    assert not kept(two)


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(quantlora.ConfigError, match="0 or more bytes"):
        quantlora.inference_memory(-1)


def test_a_copy_goes_with_its_layer(backend: str) -> None:
    before = quantlora.inference_memory().used
    model = wrapped(backend)
    generate(model)
    assert quantlora.inference_memory().used > before
    del model
    gc.collect()
    assert quantlora.inference_memory().used == before


def test_explain_says_what_generating_takes(backend: str) -> None:
    model = wrapped(backend)
    told = quantlora.explain(model, r=4, target_modules=["0"], adapter_name="second").inference
    generate(model)
    used = quantlora.free_inference_copies(model)
    assert quantlora.format_size(used) in told
    assert "quantlora.inference_memory" in told
