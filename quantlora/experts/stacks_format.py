"""`PackedStacks`: the matrices of fused experts as one format, for all that goes by `Quantizer`.

Taken together they are one row, as other parameters are (`PackedParameters`): so merging, its loss
and its undoing are those of any layer. Only a merge unpacks all experts of a module at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from quantlora.errors import BackendError
from quantlora.experts.layout import ExpertsLayout
from quantlora.experts.packed import PackedExperts
from quantlora.formats.expert_stack import ExpertStack
from quantlora.formats.finite import is_finite
from quantlora.formats.parameters import PackedParameters, weights
from quantlora.formats.quantizer import Quantizer


class PackedStacks(PackedParameters):
    """The format of a `PackedExperts`; ``packer`` is the quantizer that packs its stacks."""

    def __init__(self, packer: Quantizer) -> None:
        self.packer = packer
        vars(self)["name"] = packer.name

    def dequantize(self, layer: nn.Module) -> Tensor:
        return torch.cat([weight.reshape(-1) for weight in whole_weights(layer).values()])[None]

    def shape(self, layer: nn.Module) -> tuple[int, int]:
        return 1, sum(shape.numel() for shape in parameter_shapes(layer).values())

    def quantize(
        self, linear: nn.Linear, like: nn.Module | None = None, **options: Any
    ) -> nn.Module:
        """``like``, a `PackedExperts`, with all its tensors cut from the only row of ``linear``."""
        assert isinstance(like, PackedExperts)
        parts = _cut(linear.weight.detach()[0], like)
        stacks = {
            name: self.packer.quantize_experts(_turned(parts[name], like.layout), name, like=stack)
            for name, stack in like.stacks.items()
        }
        new = PackedExperts(like, like.layout, stacks)
        for name, part in parts.items():
            if name not in stacks:
                old = like._parameters[name]
                assert old is not None
                new._parameters[name] = nn.Parameter(part.to(old.dtype, copy=True), False)
        return new

    def unpacked(self, linear: nn.Linear, like: nn.Module) -> nn.Module:
        assert isinstance(like, PackedExperts)
        parts, dtypes = _cut(linear.weight.detach()[0], like), whole_dtypes(like)
        return like.unpacked(
            {name: part.to(dtypes[name], copy=True) for name, part in parts.items()}
        )

    def describe(self, layer: nn.Module) -> dict[str, Any]:
        if not isinstance(layer, PackedExperts):
            return {}
        facts = [stack.describe() for stack in layer.stacks.values()]
        floats = [name for name in layer.layout.names if name not in layer.stacks]
        return {**facts[0], **({"float": ", ".join(floats)} if floats else {})}


def pack_experts(
    module: nn.Module,
    layout: ExpertsLayout,
    names: Collection[str],
    packer: Quantizer,
    path: str,
    options: Mapping[str, Any],
) -> PackedExperts:
    """``module`` with its matrices ``names`` packed; it is left as it is.

    Raises `BackendError` where a weight is NaN or infinite, or becomes so.
    """
    stacks = {
        name: pack_stack(getattr(module, name), layout, packer, f"{path}.{name}", options)
        for name in names
    }
    return PackedExperts(module, layout, stacks)


def pack_stack(
    weight: Tensor,
    layout: ExpertsLayout,
    packer: Quantizer,
    location: str,
    options: Mapping[str, Any],
) -> ExpertStack:
    """The matrices of some experts, in the layout's order; errors as of `pack_experts`."""
    weight = _turned(weight.detach(), layout)
    if not is_finite(weight):
        raise BackendError(
            f"{location}: the weight holds NaN or infinite values and cannot be quantized; "
            f"repair it, or leave the experts out with exclude_modules."
        )
    stack = packer.quantize_experts(weight, location, **options)
    _check_packed(stack, location)
    return stack


def _check_packed(stack: ExpertStack, location: str) -> None:
    for expert in range(stack.shape[0]):
        if not is_finite(stack.dequantize([expert], torch.float32)):
            raise BackendError(
                f"{location}: packed by {stack.format!r} expert {expert} holds NaN or "
                f"infinite values: leave the experts out with exclude_modules, or take another "
                f"backend."
            )


def parameter_shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Shapes of what can be adapted in ``module``, in the order of its format's row.

    The matrices are last, in their order in the float module: files go by it.
    """
    shapes = {name: weight.shape for name, weight in weights(module).items()}
    if isinstance(module, PackedExperts):
        for name in module.layout.names:
            shape = shapes.pop(name) if name in shapes else _whole_shape(module, name)
            shapes[name] = shape
    return shapes


def _whole_shape(module: PackedExperts, name: str) -> torch.Size:
    return torch.Size(module.layout.own_shape(module.stacks[name].shape))


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of those shapes, packed ones unpacked."""
    floats = weights(module)
    return {
        name: floats[name].detach()
        if name in floats
        else whole_stack(cast(PackedExperts, module), name)
        for name in parameter_shapes(module)
    }


def whole_stack(module: PackedExperts, name: str) -> Tensor:
    """All experts of one stack in float, as the float module has them."""
    stack = module.stacks[name]
    dtype = torch.promote_types(stack.dtype, torch.float32)
    return _turned(stack.dequantize(range(stack.shape[0]), dtype), module.layout)


def whole_dtypes(module: PackedExperts) -> dict[str, torch.dtype]:
    """Dtypes of those tensors in the float module."""
    floats = {name: weight.dtype for name, weight in weights(module).items()}
    return floats | {name: stack.dtype for name, stack in module.stacks.items()}


def _turned(weight: Tensor, layout: ExpertsLayout) -> Tensor:
    """``(experts, out, in)`` from the layout's own order, and back."""
    return weight.transpose(1, 2).contiguous() if layout.transposed else weight


def _cut(row: Tensor, like: PackedExperts) -> dict[str, Tensor]:
    shapes = parameter_shapes(like)
    parts = torch.split(row, [shape.numel() for shape in shapes.values()])
    return {n: part.reshape(shape) for (n, shape), part in zip(shapes.items(), parts, strict=True)}
