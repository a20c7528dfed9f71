"""`prepare`: what is cast, what is not, and that training goes through."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora.testing.models import tiny_llama

HALF = torch.bfloat16


def bf16_llama() -> nn.Module:
    return tiny_llama().to(HALF)


def dtypes(model: nn.Module, word: str) -> set[torch.dtype]:
    return {p.dtype for name, p in model.named_parameters() if word in name}


def loss(model: nn.Module) -> Tensor:
    ids = torch.arange(3, 19).view(2, 8)
    result: Tensor = model(input_ids=ids, labels=ids).loss
    return result


def test_only_norms_are_cast_by_default() -> None:
    model = bf16_llama()
    quantlora.prepare(model)
    assert dtypes(model, "norm") == {torch.float32}
    assert dtypes(model, "embed") | dtypes(model, "proj") | dtypes(model, "lm_head") == {HALF}


def test_all_casts_everything_that_is_not_packed() -> None:
    model = bf16_llama()
    quantlora.wrap(model, backend="normalfloat", r=2)
    quantlora.prepare(model, upcast="all")
    assert dtypes(model, "") == {torch.float32}
    assert model.model.layers[0].mlp.up_proj.base_layer.packed.dtype == torch.uint8


def test_none_casts_nothing() -> None:
    model = bf16_llama()
    assert quantlora.prepare(model, upcast="none").extra_bytes == 0
    assert dtypes(model, "") == {HALF}


def test_the_report_counts_the_bytes() -> None:
    model = bf16_llama()
    before = sum(p.numel() * p.element_size() for p in model.parameters())
    report = quantlora.prepare(model)
    after = sum(p.numel() * p.element_size() for p in model.parameters())
    assert report.extra_bytes == after - before > 0
    assert "gradient checkpointing on" in str(report)


def test_a_second_call_changes_nothing() -> None:
    model = bf16_llama()
    quantlora.prepare(model)
    hooks = len(model.model.norm._forward_hooks)
    assert quantlora.prepare(model).extra_bytes == 0
    assert len(model.model.norm._forward_hooks) == hooks


@pytest.mark.parametrize("upcast", ["norms", "all", "none"])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("backend", ["auto", "normalfloat", "bitsandbytes_4bit"])
def test_gradients_reach_every_adapter(backend: str, reentrant: bool, upcast: str) -> None:
    if backend == "bitsandbytes_4bit":
        pytest.importorskip("bitsandbytes")
    model = quantlora.wrap(bf16_llama(), backend=backend, r=2)
    kwargs = {"use_reentrant": reentrant}
    quantlora.prepare(model, upcast, gradient_checkpointing_kwargs=kwargs)
    loss(model.train()).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None for p in trained)


def test_the_base_is_frozen_and_adapters_are_not() -> None:
    model = quantlora.wrap(bf16_llama(), r=2)
    quantlora.prepare(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)


@torch.no_grad()
def test_norms_in_float32_are_nearer_to_the_float32_model() -> None:
    exact = tiny_llama()
    ids = torch.arange(3, 19).view(2, 8)
    half, prepared = bf16_llama(), bf16_llama()
    quantlora.prepare(prepared)
    error = [float((m(ids).logits.float() - exact(ids).logits).norm()) for m in (half, prepared)]
    assert error[1] < error[0] * 1.05
    assert prepared(ids).logits.dtype == HALF


def test_an_unknown_upcast_is_an_error() -> None:
    with pytest.raises(quantlora.ConfigError, match="norms, all, none, got 'some'"):
        quantlora.prepare(nn.Linear(2, 2), upcast="some")


def test_modules_and_biases_that_an_adapter_trains_are_trained_still() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    fields = {"target_modules": ["0"], "modules_to_save": ["2"], "bias": "all"}
    quantlora.wrap(model, r=2, **fields)
    before = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("modules_to_save" in name for name in before)
    assert any(name.endswith("1.bias") for name in before)
    quantlora.prepare(model, gradient_checkpointing=False)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == before
