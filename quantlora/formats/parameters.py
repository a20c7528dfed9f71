"""Parameters that are no layer's weight: the matrices of fused experts, float or packed.

A module may hold several. Taken together they are one matrix of a single row, so that merging,
its loss and its undoing are those of any layer. Packed are those under one of torch's
parametrizations (`torch.nn.utils.parametrize`): reading the attribute unpacks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from quantlora.formats.quantizer import FLOAT, Quantizer
from quantlora.formats.twin import call_twin, parametrized, twin
from quantlora.units import dtype_name


def parameter_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the module's own parameters, then of its packed ones; nothing is unpacked."""
    return (*module._parameters, *parametrized(module))


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Its float parameters with two or three dimensions by name, packed ones unpacked."""
    values = {name: getattr(module, name) for name in parameter_names(module)}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, Tensor) and value.dim() in (2, 3) and value.is_floating_point()
    }


def call_with(module: nn.Module, tensors: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """``module(*args, **kwargs)`` with ``tensors`` in place of its parameters of those names."""
    if torch.compiler.is_compiling() and not parametrized(module):
        return functional_call(module, dict(tensors), args, kwargs)  # one thread traces
    return call_twin(module, tensors, *args, **kwargs)


def with_parameters(like: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module of ``like``'s class with parameters of its own; all else is shared with it."""
    parameters = {
        name: nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()
    }
    new = twin(like, parameters)
    for name in parameters:
        vars(new).pop(name, None)
    new._parameters = {**new._parameters, **parameters}
    return new


class PackedParameters(Quantizer):
    """Some parameters of the module are packed; it is in no registry, the plan asks for it."""

    name: ClassVar[str] = "parametrization"
    module: ClassVar[str] = "torch"

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return ()

    def dequantize(self, layer: nn.Module) -> Tensor:
        return torch.cat([weight.detach().reshape(-1) for weight in weights(layer).values()])[None]

    def shape(self, layer: nn.Module) -> tuple[int, int]:
        return 1, sum(weight.numel() for weight in weights(layer).values())

    def bias(self, layer: nn.Module) -> Tensor | None:
        return None

    def unpacked(self, linear: nn.Linear, like: nn.Module) -> nn.Module:
        """``like`` with float parameters cut from the only row of ``linear``."""
        return FloatParameters().quantize(linear, like=like)

    def describe(self, layer: nn.Module) -> dict[str, Any]:
        return {name: dtype_name(weight.dtype) for name, weight in weights(layer).items()}


class FloatParameters(PackedParameters):
    """All parameters of the module are float."""

    name: ClassVar[str] = FLOAT
    is_float: ClassVar[bool] = True

    def quantize(
        self, linear: nn.Linear, like: nn.Module | None = None, **options: Any
    ) -> nn.Module:
        """``like`` with float parameters cut from the only row of ``linear``, in their dtypes."""
        assert like is not None
        old = weights(like)
        parts = torch.split(linear.weight.detach()[0], [weight.numel() for weight in old.values()])
        pairs = zip(old.items(), parts, strict=True)
        return with_parameters(
            like,
            {
                name: new.reshape(weight.shape).to(weight.dtype, copy=True)
                for (name, weight), new in pairs
            },
        )


def format_of(module: nn.Module) -> PackedParameters:
    """The format of a module's parameters."""
    return PackedParameters() if parametrized(module) else FloatParameters()
