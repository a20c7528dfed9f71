"""Merging an adapter into packed weights, and taking it out again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import quantlora
from tests.benchmarks import arms
from tests.benchmarks.arms import Size
from tests.benchmarks.reference import check
from tests.benchmarks.result import Result
from tests.benchmarks.timing import interleaved

#: Of the merged weight: of 4 bits, of 8 bits, of bfloat16.
LIMITS = {"bitsandbytes_4bit": 0.15, "bitsandbytes_8bit": 0.02, "float": 5e-3}


def run(size: Size, device: str) -> Result:
    """One layer of the model; both pack again, as PEFT always does."""
    result = Result("Merge and unmerge", "ms", "peft")
    for form in arms.PEERS:
        base = arms.packed(size, form, device, layers=1)
        mine = arms.ours(base, size).eval()
        theirs: Any = arms.peft(base, mine, form, size).eval()
        errors = {"quantlora": _error(mine, LIMITS[form])}
        calls = {"quantlora": _mine(mine), "peft": _theirs(theirs)}
        result.add(form, interleaved(calls, "peft", min(3, size.rounds)), errors)
    return result


def _error(model: nn.Module, limit: float) -> float:
    """The merged weights against ``W + sBA`` in float64; the largest error."""
    layers = dict(quantlora.lora_layers(model))
    wanted = {path: _merged(layer) for path, layer in layers.items()}
    quantlora.merge(model)
    found = {path: layer.dequantize() for path, layer in layers.items()}
    quantlora.unmerge(model)
    return max(check(path, found[path], wanted[path], limit) for path in layers)


def _merged(layer: Any) -> Tensor:
    A, B = (factor.weight.detach().double() for factor in layer.factors("default"))
    return layer.dequantize().double() + layer.scaling["default"] * (B @ A)  # type: ignore[no-any-return]


def _mine(model: nn.Module) -> Callable[[], object]:
    def call() -> None:
        quantlora.merge(model)
        quantlora.unmerge(model)

    return call


def _theirs(model: Any) -> Callable[[], object]:
    def call() -> None:
        with torch.no_grad():
            model.merge_adapter()
            model.unmerge_adapter()

    return call
