"""Everything ``quantlora inspect`` finds, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from quantlora.config.lora_config import LoraConfig
from quantlora.discovery.registration import AUTO
from quantlora.inspection.checkpoint_format import CheckpointFormat
from quantlora.inspection.model_parts import Part, expert_parameters, model_parts
from quantlora.inspection.sizes import FormatSize, format_sizes
from quantlora.inspection.stored_model import ModelSource, model_source
from quantlora.units import dtype_name
from quantlora.wrapping.explain import explain
from quantlora.wrapping.explanation import Explanation, LayerRow

#: Names the form of the JSON; fields may be added under one id.
SCHEMA = "quantlora.inspect/1"


@dataclass(frozen=True)
class Kind:
    """Layers that are alike but for their number: same name, class, shape and plan.

    Args:
        parameters: weights of all of them.
        adapter: parameters of the adapters they get.
    """

    name: str
    layer: str
    shape: tuple[int, int] | None
    count: int
    parameters: int
    format: str
    wrapper: str
    r: int | None
    adapter: int
    reason: str


@dataclass(frozen=True)
class Inspection:
    """What is known of a model without its weights; sizes are in parameters and bytes.

    Args:
        experts: parameters of its experts, 0 where it is no mixture.
        parts: where the bytes are, as stored.
    """

    model: str
    architecture: str
    dtype: str
    parameters: int
    checkpoint: CheckpointFormat | None
    problem: str
    kinds: tuple[Kind, ...]
    problems: tuple[str, ...]
    sizes: tuple[FormatSize, ...]
    warnings: tuple[str, ...] = ()
    experts: int = 0
    parts: tuple[Part, ...] = ()

    @property
    def linear_parameters(self) -> int:
        """Weights of the layers that get an adapter: those that a format packs."""
        return sum(kind.parameters for kind in self.kinds if kind.wrapper)

    @property
    def adapter_parameters(self) -> int:
        return sum(kind.adapter for kind in self.kinds)

    def memory(self, size: FormatSize, rest: float = 2.0) -> float:
        """Bytes of all weights with the wrapped layers in that format, ``rest`` bytes each else."""
        others = self.parameters - self.linear_parameters
        return self.linear_parameters * size.bytes_per_weight + others * rest

    def as_json(self) -> dict[str, Any]:
        memory = [{**asdict(size), "bytes": round(self.memory(size))} for size in self.sizes]
        facts = {"schema": SCHEMA, **asdict(self), "adapter_parameters": self.adapter_parameters}
        return {**facts, "stored": facts.pop("checkpoint"), "sizes": memory}


def inspect_model(model: str, backend: str = AUTO, **fields: Any) -> Inspection:
    """Plan `wrap` on the model of that folder or hub id, without loading its weights.

    Raises:
        ConfigError: the model's config cannot be read, or a field of the adapter's is wrong.
    """
    LoraConfig.from_fields(fields)
    source = model_source(model)
    checkpoint, meta_model = source.checkpoint, source.model
    sizes = tuple(format_sizes())
    found: Explanation = explain(meta_model, backend=AUTO if checkpoint else backend, **fields)
    return Inspection(
        model,
        type(meta_model).__name__,
        dtype_name(next(meta_model.parameters()).dtype),
        sum(parameter.numel() for parameter in meta_model.parameters()),
        checkpoint,
        checkpoint.problem(backend) if checkpoint else "",
        _kinds(found.rows, source),
        (*found.problems, *[row.reason for row in found.rows if row.fails][:1]),
        sizes,
        found.warnings,
        expert_parameters(meta_model),
        model_parts(meta_model, source.costs or _costs(found.rows, checkpoint, sizes)),
    )


def _costs(
    rows: tuple[LayerRow, ...], checkpoint: CheckpointFormat | None, sizes: tuple[FormatSize, ...]
) -> dict[str, float]:
    """Bytes of one weight, by its path, of the layers that the checkpoint has packed."""
    if checkpoint is None:
        return {}
    named = [size for size in sizes if size.format == checkpoint.name]
    bits = checkpoint.settings.get("bits")
    fits = [size for size in named if bits is None or size.bits == bits]
    if not fits:
        return {}
    cost = fits[-1].bytes_per_weight
    return {f"{r.path}.weight": cost for r in rows if r.wrapper and checkpoint.covers(r.path)}


def _kinds(rows: tuple[LayerRow, ...], source: ModelSource) -> tuple[Kind, ...]:
    groups: dict[tuple[Any, ...], list[LayerRow]] = {}
    for row in rows:
        form = source.formats.get(row.path) or _format(row, source.checkpoint)
        name = row.path.rsplit(".", 1)[-1]
        reason = row.reason.partition("\n")[0].removeprefix(f"{row.path}: ")
        key = (name, row.layer, row.shape, form, row.wrapper, row.r, reason)
        groups.setdefault(key, []).append(row)
    return tuple(_kind(key, len(group)) for key, group in groups.items())


def _format(row: LayerRow, checkpoint: CheckpointFormat | None) -> str:
    """The meta model is float; the layers that get an adapter are stored as the checkpoint says."""
    packed = checkpoint is not None and row.wrapper and checkpoint.covers(row.path)
    return checkpoint.name if packed and checkpoint is not None else row.format


def _kind(key: tuple[Any, ...], count: int) -> Kind:
    name, layer, shape, form, wrapper, r, reason = key
    out_features, in_features = shape or (0, 0)
    adapter = count * (r or 0) * (out_features + in_features)
    parameters = count * out_features * in_features
    return Kind(name, layer, shape, count, parameters, form, wrapper, r, adapter, reason)
