"""Many adapters: a batch in which each sample has its own, and as many on one model."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import quantlora
from tests.benchmarks.arms import Size
from tests.benchmarks.reference import checked
from tests.benchmarks.result import Result
from tests.benchmarks.timing import interleaved, timing

LENGTH, LIMIT = 4, 1e-4


def run(size: Size, device: str) -> Result:
    """Three linear layers in float32, each with all adapters; PEFT with the same numbers."""
    result = Result("Many adapters", "ms", "peft")
    for count in (1, 8, 64, 512) if size.hidden > 1000 else (1, 8):
        mine, theirs, seconds = _both(count, size, device)
        result.add(f"put {count} adapters on", seconds, {})
        x = torch.randn(min(count, 64), LENGTH, size.hidden, device=device)
        names = [f"a{i * count // len(x)}" for i in range(len(x))]
        wanted = _wanted(mine, x, names)
        calls = {"peft": _theirs(theirs, x, names), "quantlora": _mine(mine, x, names)}
        errors = {name: checked(name, call, wanted, LIMIT) for name, call in calls.items()}
        calls["base"] = _bare(mine, x)
        times = interleaved(calls, "peft", size.rounds)
        result.add(f"batch of {len(x)} samples, {count} adapters", times, errors)
    return result


def _stack(size: Size, device: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(size.hidden, size.hidden) for _ in range(3))).to(device)


def _both(count: int, size: Size, device: str) -> tuple[nn.Module, Any, dict[str, Any]]:
    from peft import LoraConfig, get_peft_model

    fields: dict[str, Any] = {"r": size.r, "target_modules": ["0", "1", "2"]}
    begin = time.process_time()
    mine = quantlora.wrap(_stack(size, device), adapter_name="a0", **fields)
    for i in range(1, count):
        quantlora.wrap(mine, adapter_name=f"a{i}", **fields)
    ours = time.process_time() - begin
    begin = time.process_time()
    theirs = get_peft_model(_stack(size, device), LoraConfig(**fields), adapter_name="a0")
    for i in range(1, count):
        theirs.add_adapter(f"a{i}", LoraConfig(**fields))
    peers = time.process_time() - begin
    _fill(mine, theirs)
    own = {"peft": timing([peers], [peers]), "quantlora": timing([ours], [peers])}
    return mine.eval(), theirs.eval(), own


def _fill(mine: nn.Module, theirs: nn.Module) -> None:
    """B is not zero, and both have the same numbers."""
    torch.manual_seed(1)
    target = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in mine.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.05)
            target[f"base_model.model.{name}"].copy_(parameter)


def _wanted(model: nn.Module, x: Tensor, names: list[str]) -> Tensor:
    """Sample by sample, by the formula, in float64."""
    layers = [layer for _, layer in quantlora.lora_layers(model)]
    samples = []
    for sample, name in zip(x.double(), names, strict=True):
        for layer in layers:
            tensors = layer.adapter_tensors(name)
            A, B = (tensors[f"lora_{side}.weight"].detach().double() for side in "AB")
            W, b = layer.dequantize().double(), layer.base_bias.detach().double()
            sample = sample @ W.t() + b + layer.scaling[name] * (sample @ A.t() @ B.t())
        samples.append(sample)
    return torch.stack(samples)


def _mine(model: nn.Module, x: Tensor, names: list[str]) -> Callable[[], Tensor]:
    @torch.no_grad()
    def call() -> Tensor:
        with quantlora.mixed_batch(model, names):
            return model(x)  # type: ignore[no-any-return]

    return call


def _bare(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """The frozen layers by themselves: what both have in common, and no adapter can save."""
    linears = nn.Sequential(*(layer.base_layer for _, layer in quantlora.lora_layers(model)))

    @torch.no_grad()
    def call() -> Tensor:
        return linears(x)  # type: ignore[no-any-return]

    return call


def _theirs(model: Any, x: Tensor, names: list[str]) -> Callable[[], Tensor]:
    @torch.no_grad()
    def call() -> Tensor:
        return model(x, adapter_names=names)  # type: ignore[no-any-return]

    return call
