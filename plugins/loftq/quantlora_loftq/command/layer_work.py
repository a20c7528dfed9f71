"""One layer: read, quantize, fit, save. Nothing of it stays in memory."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantlora import ConfigError, Quantizer, linear_from
from quantlora_loftq.command.parts import Parts
from quantlora_loftq.command.source import LayerPlan, Source
from quantlora_loftq.initializers import seed_for
from quantlora_loftq.loop import Problem, Solution, solve

BASE = "base."
FACTS = "facts"
SOURCE = "source"


@dataclass(frozen=True)
class LayerFacts:
    """A row of the report. Errors are relative to the weight's Frobenius norm."""

    path: str
    shape: tuple[int, int]
    bits: int
    quantized_error: float
    loftq_error: float
    seconds: float


@torch.no_grad()
def work_on(plan: LayerPlan, source: Source, quantizer: Quantizer, parts: Parts) -> None:
    """Write the part of one layer: its packed state, A, B and what it lost."""
    begin = time.monotonic()
    original = source.files.tensor(plan.key)
    _check(plan, source, original)
    weight = original.to(source.recipe.device, torch.float32)
    norm = float(weight.norm()) or 1.0
    solution = _solve(plan, source, quantizer, weight)
    A, B = solution.factors(plan.scaling)
    state = _state(solution.base, quantizer, original.dtype, source.recipe.fake)
    tensors = {**state, "lora_A": A, "lora_B": B}
    facts = LayerFacts(
        plan.path,
        plan.shape,
        plan.bits,
        solution.plain_error / norm,
        solution.error / norm,
        time.monotonic() - begin,
    )
    parts.save(plan.path, tensors, {FACTS: json.dumps(asdict(facts)), SOURCE: digest(original)})


def check_source(plan: LayerPlan, source: Source, parts: Parts) -> None:
    """Raise `ConfigError` where a finished layer was made of another weight than is there now."""
    if parts.open(plan.path).metadata.get(SOURCE) != digest(source.files.tensor(plan.key)):
        raise ConfigError(
            f"{parts.folder} holds layers of an unfinished run over other weights than "
            f"{source.folder} has now ({plan.path} first). Put those weights back to finish it, or "
            f"remove {parts.folder.parent} to begin anew."
        )


def digest(original: Tensor) -> str:
    """A hash of the weight as its file has it."""
    data = original.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return hashlib.sha256(data).hexdigest()


def _solve(plan: LayerPlan, source: Source, quantizer: Quantizer, weight: Tensor) -> Solution:
    recipe = source.recipe
    first = quantize(quantizer, weight, plan.bits)

    def pack(target: Tensor) -> nn.Module:
        return quantizer.quantize(linear_from(target), like=first)

    seed = seed_for(plan.path, recipe.seed)
    problem = Problem(weight, quantizer.dequantize, pack, plan.r, recipe.method, seed)
    return solve(problem, first, recipe.iterations)


def quantize(quantizer: Quantizer, weight: Tensor, bits: int) -> nn.Module:
    """Packed to ``bits``, where the format leaves a choice."""
    options: dict[str, Any] = {"bits": bits} if len(quantizer.bits) > 1 else {}
    return quantizer.quantize(linear_from(weight), **options)


def _state(
    base: nn.Module, quantizer: Quantizer, dtype: torch.dtype, fake: bool
) -> dict[str, Tensor]:
    if fake:
        return {f"{BASE}weight": quantizer.dequantize(base).to(dtype)}
    tensors = base.state_dict()
    return {BASE + key: value for key, value in tensors.items() if isinstance(value, Tensor)}


def _check(plan: LayerPlan, source: Source, original: Tensor) -> None:
    if tuple(original.shape) != plan.shape:
        raise ConfigError(
            f"{plan.path}: {plan.key} in {source.folder} has shape {tuple(original.shape)}, the "
            f"model's config says {plan.shape}."
        )
    if not torch.isfinite(original).all():
        raise ConfigError(
            f"{plan.path}: the weight holds NaN or infinite values and cannot be quantized; "
            f"leave the layer out with --exclude-modules."
        )
