"""One token for each of 1, 4 and 16 sequences: what a user waits for while text is generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks import arms
from tests.benchmarks.arms import Size
from tests.benchmarks.reference import checked, reference_of, without_adapters
from tests.benchmarks.result import Result
from tests.benchmarks.timing import interleaved

#: bfloat16; a wrong scale or a missing adapter is tens of percent.
LIMIT = 0.05
ROWS = (1, 4, 16)
#: Of the model: the weights of one are more than a cache holds.
LAYERS = 1
DORA: dict[str, Any] = {"use_dora": True}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((form, {}) for form in arms.FORMATS),
    ("bitsandbytes_4bit", DORA),
]


def run(size: Size, device: str) -> Result:
    """Arms: the library's own layers without LoRA, dense bfloat16, PEFT, quantlora."""
    result = Result("Generate one token", "ms", "base")
    dense = arms.llama(size, device, LAYERS)
    for form, fields in CASES:
        models = models_of(form, size, device, LAYERS, **fields)
        errors = errors_of(models, device)
        models["dense"] = dense
        name = f"{form}, DoRA" if fields else form
        for rows in ROWS if not fields else ROWS[:1]:
            calls = {arm: call_of(m, arms.tokens(rows, 1, device)) for arm, m in models.items()}
            times = interleaved(calls, "base", 3 * size.rounds)
            result.add(f"{name}, {rows} row{'s' * (rows > 1)}", times, errors)
    return result


def models_of(
    form: str, size: Size, device: str, layers: int | None = None, **fields: Any
) -> dict[str, nn.Module]:
    base = arms.packed(size, form, device, layers)
    mine = arms.ours(base, size, **fields)
    models = {"base": base, "quantlora": mine}
    if form in arms.PEERS and not (fields and arms.repacks(base)):
        models["peft"] = arms.peft(base, mine, form, size, **fields)
    return {name: model.eval() for name, model in models.items()}


def errors_of(models: dict[str, nn.Module], device: str) -> dict[str, float]:
    """Few tokens, so that the product is checked which decoding takes."""
    reference = reference_of(models["quantlora"])
    ids = arms.tokens(1, 8, device)
    with torch.no_grad():
        wanted, plain = reference(ids).logits, without_adapters(reference)(ids).logits
    return {
        name: checked(name, _logits(model, ids), plain if name == "base" else wanted, LIMIT)
        for name, model in models.items()
    }


def _logits(model: nn.Module, ids: Tensor) -> Callable[[], Tensor]:
    return lambda: model(ids, use_cache=False).logits


def call_of(model: nn.Module, ids: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.no_grad():
            return model(ids, use_cache=False).logits  # type: ignore[no-any-return]

    return call
