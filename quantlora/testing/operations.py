"""The life of an adapter, one operation after another, on a layer of any format.

`OPERATIONS` is the list that docs/operations.md shows by backend. Outputs are compared with
``x · (W + Σ ΔW)ᵀ + bias + Σ Δbias`` in float64, W being the layer's own dequantized weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quantlora.testing import reference
from quantlora.testing.base import OneLayerModel, SuiteBase
from quantlora.wrapped_model import wrap


@dataclass(frozen=True)
class Operation:
    """One row of the table.

    Args:
        packs: it needs a format that can be packed again.
        varies: it is about a variant of its own, which cannot be another one too.
    """

    name: str
    run: Callable[[SuiteBase], None]
    packs: bool = False
    varies: bool = False


OPERATIONS: dict[str, Operation] = {}


def operation(
    name: str, packs: bool = False, varies: bool = False
) -> Callable[[Callable[[SuiteBase], None]], Callable[[SuiteBase], None]]:
    """Put a function on the list, under the name it has in the docs."""

    def register(run: Callable[[SuiteBase], None]) -> Callable[[SuiteBase], None]:
        OPERATIONS[name] = Operation(name, run, packs, varies)
        return run

    return register


def expected(model: OneLayerModel, x: Tensor, names: tuple[str, ...]) -> Tensor:
    """The output with the adapters ``names``, in float64."""
    lora = model.lora
    base, quantizer = lora.plain_base
    weight, bias = quantizer.dequantize(base), quantizer.bias(base)
    total = reference.float64(weight)
    offset = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    offset = offset if bias is None else reference.float64(bias)
    for name in names:
        total = total + reference.float64(lora.delta_weight(name, weight.double()))
        delta_bias = lora.delta_bias(name, weight)
        offset = offset if delta_bias is None else offset + reference.float64(delta_bias)
    return reference.float64(x) @ total.t() + offset


def check(suite: SuiteBase, model: OneLayerModel, x: Tensor, *names: str) -> None:
    """The model's output is the expected one, within the suite's tolerance."""
    error = reference.relative(model(x), expected(model, x, names))
    assert error <= suite.tolerance(model.lora.plain_base[0], x.dtype)


def one_adapter(suite: SuiteBase, **fields: Any) -> tuple[OneLayerModel, Tensor]:
    layer = suite.layer()
    return suite.wrapped(layer, **fields), suite.input(layer, 6)


def two_adapters(suite: SuiteBase, **fields: Any) -> tuple[OneLayerModel, Tensor]:
    """``default`` and ``second``, of different ranks and scales; ``second`` is active."""
    model, x = one_adapter(suite)
    fields = {"r": 1, "lora_alpha": 2, "target_modules": ["proj"], **suite.adapter, **fields}
    return wrap(model, adapter_name="second", init_lora_weights=False, **fields), x


def another_variant(suite: SuiteBase) -> dict[str, Any]:
    """Fields for an adapter of another variant than the first; DoRA where that is plain LoRA."""
    return {} if suite.adapter else {"use_dora": True}
