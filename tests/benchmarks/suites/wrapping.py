"""Putting adapters on a model: 7B and 70B shapes without memory, 1B with its weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import quantlora
from tests.benchmarks.arms import Size
from tests.benchmarks.result import Result
from tests.benchmarks.timing import timing


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes, and on which device its weights are."""

    layers: int
    hidden: int
    inner: int
    heads: int
    groups: int
    device: str


SHAPES = {
    "7B, meta": Shape(32, 4096, 11008, 32, 32, "meta"),
    "70B, meta": Shape(80, 8192, 28672, 64, 8, "meta"),
    "1B, bfloat16": Shape(16, 2048, 8192, 32, 8, "cpu"),
}
SMALL = {"small, meta": Shape(2, 128, 256, 2, 1, "meta")}


def run(size: Size, device: str) -> Result:
    """No number is computed: what is checked is that both adapt the same layers."""
    result = Result("Put an adapter on", "ms", "peft")
    for name, shape in (SHAPES if size.hidden > 1000 else SMALL).items():
        rounds = [_round(shape, size.r) for _ in range(min(3, size.rounds))]
        theirs, ours = zip(*rounds, strict=True)
        result.add(name, {"peft": timing([*theirs], [*theirs]),
                          "quantlora": timing([*ours], [*theirs])}, {})  # fmt: skip
    return result


def _round(shape: Shape, r: int) -> tuple[float, float]:
    from peft import LoraConfig, get_peft_model

    fields: dict[str, Any] = {"r": r, "target_modules": "all-linear"}
    model, other = _model(shape), _model(shape)
    theirs = _timed(lambda: get_peft_model(model, LoraConfig(**fields), low_cpu_mem_usage=True))
    ours = _timed(lambda: quantlora.wrap(other, **fields))
    mine = [name for name, p in other.named_parameters() if p.requires_grad]
    if len(mine) != len([p for p in model.parameters() if p.requires_grad]):
        raise RuntimeError("PEFT and quantlora adapt other layers")
    return theirs, ours


def _timed(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def _model(shape: Shape) -> nn.Module:
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    return model if shape.device == "meta" else model.to_empty(device=shape.device)
