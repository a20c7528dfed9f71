"""``device_map`` with offload: accelerate's hooks bring a layer's weights in for each use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import Tensor, nn

import quantlora
from quantlora.testing.models import tiny_llama

FORMATS = ["auto", "normalfloat"]
PLACES = ["cpu", "disk"]
IDS = torch.arange(3, 19).view(2, 8)


def plain(backend: str) -> nn.Module:
    """A model without adapters whose linear layers are in the format."""
    model = tiny_llama(num_hidden_layers=1)
    return model if backend == "auto" else quantlora.unload(quantlora.wrap(model, backend=backend))


def wrapped(model: nn.Module, **fields: object) -> nn.Module:
    torch.manual_seed(3)
    return quantlora.wrap(model, r=2, init_lora_weights=False, **fields)


Offloaded = Callable[..., nn.Module]


@pytest.fixture(params=PLACES)
def offloaded(request: pytest.FixtureRequest, tmp_path: Path) -> Offloaded:
    """A model in the format, its weights elsewhere between uses."""

    def make(backend: str) -> nn.Module:
        model, options = plain(backend), {"execution_device": "cpu", "offload_buffers": True}
        if request.param == "cpu":
            return cpu_offload(model, **options)
        disk_offload(model, tmp_path, **options)
        return model

    return make


def step(model: nn.Module) -> list[Tensor]:
    """The loss, and the gradient of every parameter that is trained."""
    loss = model(input_ids=IDS, labels=IDS).loss
    return [
        loss.detach(),
        *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]),
    ]


def away(model: nn.Module) -> set[bool]:
    """Whether the tensors of the frozen layers are away."""
    layers = [layer.base_layer for _, layer in quantlora.lora_layers(model)]
    return {t.is_meta for layer in layers for t in (*layer.parameters(), *layer.buffers())}


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("backend", FORMATS)
def test_loss_and_gradients_are_those_of_the_model_in_memory(
    backend: str, dora: bool, offloaded: Offloaded
) -> None:
    found = step(wrapped(offloaded(backend), use_dora=dora))
    wanted = step(wrapped(plain(backend), use_dora=dora))
    assert len(found) == len(wanted) > 1
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", FORMATS)
def test_frozen_weights_are_away_again_after_forward_and_backward(
    backend: str, offloaded: Offloaded
) -> None:
    model = wrapped(offloaded(backend))
    assert away(model) == {True}
    step(model)
    assert away(model) == {True}


@pytest.mark.parametrize("backend", FORMATS)
def test_adapters_stay_in_memory(backend: str, offloaded: Offloaded) -> None:
    model = wrapped(offloaded(backend))
    quantlora.wrap(model, r=2, adapter_name="second")
    tensors = [p for _, one in quantlora.lora_layers(model) for p in one.lora_A.parameters()]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:merging lost")
@pytest.mark.parametrize("mode", ["requantize", "dequantize"])
@pytest.mark.parametrize("backend", FORMATS)
def test_merge_is_that_of_the_model_in_memory_and_can_be_undone(
    backend: str, mode: str, offloaded: Offloaded
) -> None:
    model, twin = wrapped(offloaded(backend)), wrapped(plain(backend))
    before = model(IDS).logits
    for one in (model, twin):
        quantlora.merge(one, mode=mode)
    assert torch.equal(model(IDS).logits, twin(IDS).logits)
    quantlora.unmerge(model)
    assert torch.equal(model(IDS).logits, before)


def test_packing_offloaded_layers_is_an_error(offloaded: Offloaded) -> None:
    with pytest.raises(quantlora.BackendError, match=r"q_proj.*offloaded.*device_map"):
        quantlora.wrap(offloaded("auto"), backend="normalfloat", r=2)


@pytest.mark.parametrize("bits", [4, 8])
def test_layers_that_accelerate_cannot_bring_back_are_an_error(bits: int, tmp_path: Path) -> None:
    """On a CPU, that is bitsandbytes: the offloaded model fails by itself, without adapters."""
    model = cpu_offload(plain(f"bitsandbytes_{bits}bit"), execution_device="cpu")
    with pytest.raises((NotImplementedError, RuntimeError)):
        model(IDS)
    with pytest.raises(quantlora.BackendError, match=rf"of a Linear{bits}bit.* back.*device_map"):
        wrapped(model)
