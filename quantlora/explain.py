"""`explain`: what `wrap` would do to each layer, or why it would not. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from quantlora.config import LoraConfig
from quantlora.errors import QuantloraError, TargetError
from quantlora.layer import LoraLayer
from quantlora.names import check_name
from quantlora.plan import AUTO, PlannedLayer, check_model, plan_layer
from quantlora.registration import Registry, registry
from quantlora.targets import (
    Target,
    find_targets,
    is_all_linear,
    looks_linear,
    output_heads,
    own_modules,
    targeted,
)

#: Fields of the config that take a layer out again, and how to say so.
_REASONS = {
    "modules_to_save": "in modules_to_save: trained in full",
    "exclude_modules": "left out by exclude_modules",
    "layers_to_transform": "not in layers_to_transform",
}


@dataclass(frozen=True)
class LayerRow:
    """One linear layer of the model.

    Args:
        path: its place.
        layer: its class.
        shape: ``(out_features, in_features)``, None where nobody knows the layer.
        format: the format it will be in; with an arrow where it is quantized first.
        wrapper: the LoRA class it gets; empty when it gets none.
        r, lora_alpha: the adapter's rank and alpha; None when it gets none.
        reason: why it gets none; `wrap` would stop there if ``fails``.
        fails: whether it is targeted and cannot be wrapped.
    """

    path: str
    layer: str
    shape: tuple[int, int] | None
    format: str
    wrapper: str = ""
    r: int | None = None
    lora_alpha: float | None = None
    reason: str = ""
    fails: bool = False


@dataclass(frozen=True)
class Explanation:
    """What `explain` found: one row per linear layer, and problems with the call as a whole."""

    rows: tuple[LayerRow, ...]
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether `wrap` would get through."""
        return not self.problems and not any(row.fails for row in self.rows)

    @property
    def wrapped(self) -> tuple[LayerRow, ...]:
        """The rows that get an adapter."""
        return tuple(row for row in self.rows if row.wrapper)

    def __str__(self) -> str:
        head = ("path", "layer", "shape", "format", "wrapper", "r", "alpha", "why not")
        lines = _aligned([head, *(_cells(row) for row in self.rows)])
        total = f"{len(self.wrapped)} of {len(self.rows)} linear layers get an adapter."
        problems = [f"wrap would stop: {problem}" for problem in self.problems]
        return "\n".join([*lines, total, *problems])


def explain(
    model: nn.Module,
    config: LoraConfig | None = None,
    backend: str = AUTO,
    *,
    adapter_name: str = "default",
    **fields: Any,
) -> Explanation:
    """Show what ``wrap`` with the same arguments would do; ``print`` it for a table.

    Errors that `wrap` would raise are shown in the row or under ``problems``, not raised.
    """
    problems: list[str] = []
    try:
        config = LoraConfig.from_fields(fields) if config is None else config
        check_name(adapter_name)
        registry().initializer(config).check(config)
        if backend != AUTO:
            registry().quantizer(backend)
    except (QuantloraError, TypeError) as error:
        problems.append(str(error))
    if config is None:
        return Explanation((), tuple(problems))
    return _explain(model, config, backend, adapter_name, problems)


def _explain(
    model: nn.Module, config: LoraConfig, backend: str, adapter: str, problems: list[str]
) -> Explanation:
    known = registry()
    try:
        targets = {target.path: target for target in find_targets(model, config, known)}
    except TargetError as error:
        problems.append(str(error))
        targets = {}
    usable = AUTO if problems else backend
    rows: list[LayerRow] = []
    plan: list[PlannedLayer] = []
    for path, layer in own_modules(model):
        if path in targets:
            rows.append(_planned_row(targets[path], config, usable, adapter, known, plan))
        elif path and looks_linear(layer, known):
            rows.append(_row(path, layer, known, reason=_why_not(path, layer, model, config)))
    try:
        check_model(model, plan)
    except QuantloraError as error:
        problems.append(str(error))
    return Explanation(tuple(rows), tuple(problems))


def _planned_row(
    target: Target,
    config: LoraConfig,
    backend: str,
    adapter: str,
    known: Registry,
    plan: list[PlannedLayer],
) -> LayerRow:
    try:
        planned = plan_layer(target, config, backend, adapter, known)
    except QuantloraError as error:
        return _row(target.path, target.layer, known, reason=str(error), fails=True)
    plan.append(planned)
    row = _row(target.path, target.layer, known)
    form = f"{row.format} -> {planned.quantizer.name}" if planned.quantize else row.format
    return replace(
        row,
        format=form,
        wrapper=planned.wrapper.__name__,
        r=target.r,
        lora_alpha=target.lora_alpha,
    )


def _row(path: str, layer: nn.Module, known: Registry, **facts: Any) -> LayerRow:
    own = layer.quantizer if isinstance(layer, LoraLayer) else _only(known.candidates(layer))
    base = layer.base_layer if isinstance(layer, LoraLayer) else layer
    if own is None:
        return LayerRow(path, type(base).__name__, None, "unknown", **facts)
    details = ", ".join(f"{key} {value}" for key, value in own.describe(base).items())
    form = f"{own.name} ({details})" if details else own.name
    return LayerRow(path, type(base).__name__, own.shape(base), form, **facts)


def _only(found: list[Any]) -> Any:
    return found[0] if len(found) == 1 else None


def _why_not(path: str, layer: nn.Module, model: nn.Module, config: LoraConfig) -> str:
    for name, reason in _REASONS.items():
        without: Mapping[str, None] = {name: None}
        if name == "layers_to_transform":
            without = {**without, "layers_pattern": None}
        if not targeted(path, config) and targeted(path, replace(config, **without)):
            return reason
    if is_all_linear(config) and layer in output_heads(model, config):
        return 'the output layer: "all-linear" leaves it out'
    return "not in target_modules"


def _cells(row: LayerRow) -> tuple[str, ...]:
    shape = " x ".join(map(str, row.shape)) if row.shape else "?"
    rank = "" if row.r is None else str(row.r)
    alpha = "" if row.lora_alpha is None else f"{row.lora_alpha:g}"
    first = row.reason.partition("\n")[0].removeprefix(f"{row.path}: ")
    reason = f"wrap would stop: {first}" if row.fails else first
    return row.path, row.layer, shape, row.format, row.wrapper, rank, alpha, reason


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
