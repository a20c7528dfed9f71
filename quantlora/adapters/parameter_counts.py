"""How many numbers a model has, and how many of them are trained."""

from __future__ import annotations

from torch import nn

from quantlora.adapters.adapter_modules import frozen_modules
from quantlora.discovery.registration import registry
from quantlora.formats.expert_stack import ExpertStack


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Numbers that are trained, and all of them; a packed weight has as many as its matrix.

    Packed codes are counted as the weights they stand for, whether a format keeps them in
    parameters or buffers; scales and zero-points are no parameters of the model.
    """
    packed = [(module, count) for _, module in frozen_modules(model) if (count := _packed(module))]
    inside = {id(p) for module, _ in packed for p in module.parameters()}
    parameters = [p for p in model.parameters() if id(p) not in inside]
    frozen = sum(count for _, count in packed)
    trained = sum(_size(p) for p in parameters if p.requires_grad)
    return trained, frozen + sum(map(_size, parameters))


def _packed(module: nn.Module) -> int:
    """Numbers of a packed layer, its bias with them; 0 for any other module."""
    if isinstance(module, ExpertStack):
        experts, rows, columns = module.shape
        return experts * rows * columns
    quantizer = registry().packed_format(module)
    if quantizer is None:
        return 0
    rows, columns = quantizer.shape(module)
    return rows * columns + (0 if quantizer.bias(module) is None else rows)


def _size(parameter: nn.Parameter) -> int:
    """DeepSpeed leaves empty tensors where it has cut a parameter up."""
    return parameter.numel() or int(getattr(parameter, "ds_numel", 0))
