"""`check_distributed` says what to change before a model is shared out, and what to know."""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload
from torch import nn

import quantlora
from quantlora.testing.models import tiny_llama

STRATEGIES = ["ddp", "fsdp2", "zero2", "zero3"]
HALF = torch.bfloat16


def wrapped(backend: str = "auto", **options: object) -> nn.Module:
    model = tiny_llama(num_hidden_layers=2)
    return quantlora.wrap(model, backend=backend, r=2, quantize_options=options or None)


def four_bit(storage: torch.dtype) -> nn.Module:
    return wrapped("bitsandbytes_4bit", quant_storage=storage)


def problems(model: nn.Module, strategy: str, **options: torch.dtype) -> str:
    report = quantlora.check_distributed(model, strategy, **options)
    assert report.ok == (not report.problems)
    return "\n".join(map(str, report.problems))


def notes(model: nn.Module, strategy: str) -> str:
    return "\n".join(map(str, quantlora.check_distributed(model, strategy).notes))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("backend", ["auto", "normalfloat", "bitsandbytes_4bit"])
def test_these_formats_are_ready(backend: str, strategy: str) -> None:
    assert problems(wrapped(backend), strategy) == ""


@pytest.mark.parametrize(
    ("strategy", "ready"), [("ddp", True), ("fsdp2", False), ("zero2", True), ("zero3", True)]
)
def test_8_bit_layers_cannot_be_cut_apart(strategy: str, ready: bool) -> None:
    found = problems(wrapped("bitsandbytes_8bit"), strategy)
    assert ("SCB" in found) is not ready
    assert ready or found.startswith("model.layers.0.self_attn.q_proj (and 13 more): ")


@pytest.mark.parametrize("storage", [torch.float32, HALF, torch.uint8])
def test_codes_in_float_storage_must_not_be_cast(storage: torch.dtype) -> None:
    found = problems(four_bit(storage), "fsdp2", mixed_precision=HALF)
    assert ("quant_storage=torch.bfloat16" in found) is (storage == torch.float32)


def test_what_is_trained_in_one_shard_must_be_of_one_dtype() -> None:
    model = wrapped()
    model.model.layers[1].mlp.up_proj.lora_A.to(HALF)
    found = problems(model, "fsdp2")
    assert found.startswith("model.layers.1.mlp.up_proj.lora_A.default.weight: ")
    assert problems(model, "ddp") == ""


def test_shards_may_differ_in_what_they_train() -> None:
    model = wrapped()
    for parameter in model.model.layers[1].parameters():
        parameter.data = parameter.data.to(HALF)
    assert problems(model, "fsdp2") == ""


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_merged_adapter_is_found(strategy: str) -> None:
    model = wrapped()
    quantlora.merge(model)
    assert "unmerge" in problems(model, strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_offloaded_layers_are_found(strategy: str) -> None:
    model = quantlora.wrap(cpu_offload(tiny_llama(), execution_device="cpu"), r=2)
    assert "device_map" in problems(model, strategy)


@pytest.mark.parametrize(
    ("strategy", "word"), [("ddp", "broadcast_buffers=False"), ("fsdp2", "whole")]
)
def test_packed_weights_in_buffers_are_noted(strategy: str, word: str) -> None:
    assert word in notes(wrapped("normalfloat"), strategy)
    assert notes(wrapped("auto"), strategy) == ""


@pytest.mark.parametrize(("storage", "noted"), [(torch.uint8, True), (torch.float32, False)])
def test_integer_storage_is_noted_for_fsdp2(storage: torch.dtype, noted: bool) -> None:
    assert ("quant_storage=torch.float32" in notes(four_bit(storage), "fsdp2")) is noted


def test_the_report_raises_what_it_found() -> None:
    report = quantlora.check_distributed(wrapped("bitsandbytes_8bit"), "fsdp2")
    with pytest.raises(quantlora.BackendError, match=r"with 'fsdp2' as it is:\n- model.*SCB"):
        report.require()
    assert str(report).startswith("fsdp2: must be changed\n  change: model")


def test_a_model_that_is_ready_raises_nothing() -> None:
    report = quantlora.check_distributed(wrapped())
    report.require()
    assert str(report) == "fsdp2: ready"


def test_layers_without_adapters_count_too() -> None:
    model = quantlora.unload(wrapped("bitsandbytes_8bit"))
    assert "SCB" in problems(model, "fsdp2")


def test_an_unknown_strategy_is_an_error() -> None:
    with pytest.raises(quantlora.ConfigError, match="ddp, fsdp2, zero2, zero3, got 'fsdp'"):
        quantlora.check_distributed(nn.Linear(2, 2), "fsdp")
