"""Layers whose weight a model's own code reads (``self.wo.weight``) in place of calling them.

A LoRA layer answers such a read with float numbers, a packed layer by itself does not: T5 casts its
activations to the dtype of ``wo.weight``, MobileBERT multiplies by ``dense.weight``, and codes for
weights are a wrong result without an error. So a layer that was packed here does not stay packed
there without its LoRA layer. Transformers does the same when it quantizes (T5's ``wo``).

Found are reads that stand in the code as such. One by a variable, an index or ``getattr`` is found
where a LoRA layer has answered it.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from types import CodeType
from typing import Any, cast

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.adapter_modules import frozen_modules
from quantlora.errors import warn
from quantlora.formats.layouts import linear_from
from quantlora.layers.layer import LoraLayer

#: Methods with such words in their names do not compute.
_NO_FORWARD = ("init", "reset", "tie", "save", "load")


def read_by_model(model: nn.Module, paths: Iterable[str]) -> set[str]:
    """Those of ``paths`` whose weight is read in the code of a module they are in."""
    every = frozen_modules(model, repeat=True)
    names = {path: _names_read(cast(Any, type(module))) for path, module in every}
    return {path for path in paths if any(path.split(".")[-1] in names[up] for up in _above(path))}


def readable_bases(adapted: AdaptedModel) -> dict[LoraLayer, nn.Module]:
    """What takes the place of each LoRA layer: its base; if packed here and read, in float."""
    layers, model = adapted.lora_layers, adapted.model
    codes = [
        p for p, layer in layers.items() if layer.packed_here and layer.own_weight("weight") is None
    ]
    read = read_by_model(model, codes) | {p for p in codes if layers[p].weight_was_used}
    say_float(read)
    return {
        layer: _in_float(layer, model) if path in read else layer.base_layer
        for path, layer in layers.items()
    }


def _in_float(layer: LoraLayer, model: nn.Module) -> nn.Module:
    base = layer.base_layer
    weight, bias = layer.quantizer.dequantize(base), layer.quantizer.bias(base)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), weight.dtype)
    return layer.stored_as_before(linear_from(weight, bias).to(dtype).train(base.training))


def say_float(paths: Iterable[str]) -> None:
    """The warning that belongs to layers that are left in float."""
    if names := ", ".join(sorted(paths)):
        warn(
            f"{names}: left in float, for the model's code reads the weight of such a layer "
            f"itself, and a packed one would give it codes for numbers."
        )


def _above(path: str) -> Iterator[str]:
    parts = path.split(".")
    return (".".join(parts[:depth]) for depth in range(len(parts)))


@cache
def _names_read(kind: type[nn.Module]) -> frozenset[str]:
    """Every ``name`` of which a method of ``kind`` reads ``name.weight``."""
    return frozenset(name for code in method_codes(kind, _NO_FORWARD) for name in _read_in(code))


def method_codes(kind: type[nn.Module], left_out: Sequence[str]) -> list[CodeType]:
    """The code of the methods of ``kind`` as they are written, inside of their decorators.

    Args:
        left_out: words in the names of methods that are of no interest.
    """
    classes = kind.__mro__[: kind.__mro__.index(nn.Module)]
    methods = (item for cls in classes for item in vars(cls).items())
    codes = (_code(value) for key, value in methods if not any(word in key for word in left_out))
    return [code for code in codes if code is not None]


def _code(value: object) -> CodeType | None:
    value = inspect.unwrap(value) if inspect.isfunction(value) else getattr(value, "fget", value)
    return getattr(value, "__code__", None)


def _read_in(code: CodeType) -> Iterator[str]:
    steps = list(dis.get_instructions(code))
    for step, after in pairwise(steps):
        if (step.opname, after.opname, after.argval) == ("LOAD_ATTR", "LOAD_ATTR", "weight"):
            yield str(step.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _read_in(inner)
