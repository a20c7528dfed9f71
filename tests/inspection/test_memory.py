"""Memory by component: counted exactly, predicted before a step as it is measured in one."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, strategies as st

import quantlora
from quantlora.inspection.live_bytes import LiveBytes
from quantlora.inspection.memory import gradient_bytes, memory_of, optimizer_bytes
from quantlora.inspection.memory_estimate import _peak, parabola
from quantlora.testing.models import tiny_llama

BACKENDS = [
    "float",
    pytest.param("normalfloat", marks=pytest.mark.skipif(not find_spec("scipy"), reason="scipy")),
    pytest.param(
        "bitsandbytes_4bit",
        marks=pytest.mark.skipif(not find_spec("bitsandbytes"), reason="bitsandbytes"),
    ),
]


def test_the_peak_of_a_block_is_what_was_alive_at_once():
    with LiveBytes() as live:
        for _ in range(3):
            torch.ones(1000)
        kept = torch.ones(500)
        view = kept[:10]
    assert live.peak() == 4000
    assert live.peak(without=[kept]) == 4000
    assert view.shape == (10,)


def test_what_was_there_before_is_not_counted():
    weight = torch.ones(1000, 1000)
    with LiveBytes() as live:
        weight.t().add_(1)
    assert live.peak() == 0


def test_what_autograd_keeps_is_alive_until_backward():
    x = torch.ones(1000, requires_grad=True)
    with LiveBytes() as live:
        y = x.exp().exp()
        kept = live.peak()
        y.sum().backward()
    assert kept == 8000
    assert live.peak(without=[x.grad]) < live.peak()


def _bytes(tensors) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_weights_are_counted_once_each(backend):
    model = quantlora.wrap(tiny_llama(), backend=backend, r=4)
    found = memory_of(model)
    layers = [layer.base_layer for _, layer in quantlora.lora_layers(model)]
    trained = [one for one in model.parameters() if one.requires_grad]
    packed = 0 if backend == "float" else sum(_bytes(one.state_dict().values()) for one in layers)
    assert found.base_packed == packed
    assert found.adapters == _bytes(trained)
    if backend == "float":
        everything = [*model.parameters(), *model.buffers()]
        assert found.base_float == _bytes(everything) - found.adapters


def test_four_bits_take_less_than_a_seventh_of_the_floats():
    pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 256, "intermediate_size": 512}
    plain = memory_of(tiny_llama(**sizes).requires_grad_(False))
    packed = memory_of(quantlora.wrap(tiny_llama(**sizes), backend="bitsandbytes_4bit", r=4))
    linear = plain.base_float - packed.base_float
    assert 0 < packed.base_packed < linear / 7


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_the_prediction_is_what_a_step_takes(backend, checkpointing):
    model = quantlora.wrap(tiny_llama(num_hidden_layers=4), backend=backend, r=4)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    estimate = quantlora.memory_estimate(model, batch_size=6, length=160)
    assert estimate.activations == pytest.approx(_peak(model, 6, 160), rel=0.1)
    optimizer = torch.optim.AdamW(one for one in model.parameters() if one.requires_grad)
    model(input_ids=torch.ones(1, 8, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    assert estimate.gradients == gradient_bytes(model)
    assert estimate.optimizer == pytest.approx(optimizer_bytes(optimizer), rel=0.01)  # + counters


def test_checkpointing_is_predicted_to_save_activations():
    kept = quantlora.wrap(tiny_llama(num_hidden_layers=4), r=4)
    again = quantlora.wrap(tiny_llama(num_hidden_layers=4), r=4)
    again.gradient_checkpointing_enable({"use_reentrant": False})
    size = {"batch_size": 8, "length": 200}
    saved = quantlora.memory_estimate(kept, **size).activations
    assert quantlora.memory_estimate(again, **size).activations < saved / 2


def test_an_estimate_leaves_no_trace():
    model = quantlora.wrap(tiny_llama(), r=4, lora_dropout=0.5).eval()
    model(input_ids=torch.ones(1, 8, dtype=torch.long)).logits.sum().backward()
    gradients = {path: p.grad.clone() for path, p in model.named_parameters() if p.requires_grad}
    numbers = torch.get_rng_state()
    quantlora.memory_estimate(model, batch_size=2, length=16)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert not model.training
    for path, parameter in model.named_parameters():
        assert path not in gradients or torch.equal(parameter.grad, gradients[path])


def test_the_rows_add_up_and_can_be_read():
    found = quantlora.memory_estimate(quantlora.wrap(tiny_llama(), r=4), batch_size=1, length=8)
    *parts, total = found.rows()
    assert total == ("total", sum(count for _, count in parts))
    assert "base float" in str(found)
    assert "KiB" in str(found)


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        (tiny_llama(), {}, "nothing in the model is trained"),
        (None, {"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_estimated_is_said(model, fields, message):
    model = quantlora.wrap(tiny_llama(), r=4) if model is None else model.requires_grad_(False)
    with pytest.raises(quantlora.ConfigError, match=message):
        quantlora.memory_estimate(model, **{"batch_size": 1, "length": 8, **fields})


@given(st.tuples(*[st.integers(0, 10**6)] * 3))
def test_the_parabola_goes_through_its_points(coefficients):
    a, b, c = coefficients
    y = [a + b * x + c * x * x for x in (32, 64, 96)]
    assert parabola((32, 64, 96), y) == pytest.approx((a, b, c), rel=1e-6, abs=1e-3)
