"""`torch.compile` of a wrapped model: one graph, the same values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import quantlora
from quantlora.testing.models import tiny_llama


@pytest.fixture
def counter() -> CompileCounterWithBackend:
    torch._dynamo.reset()
    return CompileCounterWithBackend("aot_eager")


def gradients(forward: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of every A and B."""
    parameters = [one for one in model.parameters() if one.requires_grad]
    x = x.clone().requires_grad_()
    y = forward(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *parameters])]


def check(compiled: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> None:
    found, wanted = gradients(compiled, model, x), gradients(model, model, x)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def wrapped(**fields: Any) -> nn.Module:
    torch.manual_seed(0)
    return quantlora.wrap(nn.Sequential(nn.Linear(8, 6)), r=2, init_lora_weights=False, **fields)


@pytest.mark.parametrize("fields", [{}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_forward_and_backward_are_one_graph(
    fields: dict[str, bool], x: Tensor, counter: CompileCounterWithBackend
) -> None:
    model = wrapped(**fields)
    check(torch.compile(model, fullgraph=True, backend=counter), model, x)
    assert counter.frame_count == 1


@pytest.mark.parametrize("fields", [{}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_a_changed_scaling_is_seen_and_compiles_nothing(
    fields: dict[str, bool], x: Tensor, counter: CompileCounterWithBackend
) -> None:
    model = wrapped(**fields)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for scaling in (2.0, 3.0, 5.0, 7.0):
        model[0].scaling["default"] = scaling
        check(compiled, model, x)
    assert counter.frame_count == 1


def test_copies_that_inference_keeps_of_other_layers_compile_nothing(
    x: Tensor, counter: CompileCounterWithBackend
) -> None:
    plain = nn.Sequential(nn.Linear(128, 64, dtype=torch.bfloat16))
    other = quantlora.wrap(plain, backend="normalfloat", r=2).eval()
    with torch.no_grad():
        other(torch.randn(1, 128, dtype=torch.bfloat16))
    model = wrapped()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    check(compiled, model, x)
    assert quantlora.free_inference_copies(other) > 0
    check(compiled, model, x)
    assert counter.frame_count == 1


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("normalfloat", "bitsandbytes_8bit")]
BACKENDS = ["auto", "bitsandbytes_4bit", *SLOW]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_llama_is_one_graph_that_training_does_not_compile_again(
    backend: str, counter: CompileCounterWithBackend
) -> None:
    model = quantlora.wrap(tiny_llama(num_hidden_layers=1), backend=backend, r=2)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    ids, losses = torch.arange(3, 19).view(2, 8), []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for scaling in (2.0, 3.0, 5.0):
            for _, layer in quantlora.lora_layers(model):
                layer.scaling["default"] = scaling
            losses.append(compiled(input_ids=ids, labels=ids).loss)
            losses[-1].backward()
            optimizer.step()
    assert counter.frame_count == 1
    assert losses[-1] < losses[0]


def test_disabled_adapters_are_seen(x: Tensor, counter: CompileCounterWithBackend) -> None:
    model = wrapped()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        on = compiled(x)
        with quantlora.adapters_disabled(model):
            off = compiled(x)
    assert not torch.allclose(on, off)


@pytest.mark.slow
def test_adapter_names_are_seen(counter: CompileCounterWithBackend) -> None:
    model = tiny_llama(num_hidden_layers=1)
    quantlora.wrap(model, r=2, init_lora_weights=False).eval()
    compiled, ids = torch.compile(model, backend=counter), torch.arange(3, 19).view(2, 8)
    with torch.no_grad():
        for names in (None, ["default", "__base__"], ["__base__", "default"], None):
            given = {} if names is None else {"adapter_names": names}
            found, wanted = (one(input_ids=ids, **given).logits for one in (compiled, model))
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_graph_keeps_no_float_copy_of_a_packed_weight(
    checkpointing: bool, dora: bool, counter: CompileCounterWithBackend
) -> None:
    """Both directions dequantize the same weight: the compiler must not do it once for both."""
    packed = quantlora.registry().quantizer("normalfloat").quantize(nn.Linear(64, 64))
    fields = {"r": 2, "init_lora_weights": False, "use_dora": dora}
    model = quantlora.wrap(nn.Sequential(packed), **fields)
    own = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: list[Tensor] = []
    forward = partial(checkpoint, model, use_reentrant=False) if checkpointing else model
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        torch.compile(forward, fullgraph=True, backend=counter)(torch.randn(3, 64).requires_grad_())
    others = [tensor.shape for tensor in saved if tensor.data_ptr() not in own]
    assert others
    assert max(shape.numel() for shape in others) < 64 * 64
