"""Where a model's bytes are: embeddings, each block, the head; and what its experts are of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

from torch import nn

from quantlora.layers.experts import experts_layout

_BLOCK = re.compile(r"(?P<block>(?:.*?\.)?[^.]+\.\d+)\.")


@dataclass(frozen=True)
class Part:
    """A block, or a module outside the blocks.

    Args:
        name: its path; of blocks in a row that are alike the first and the last.
        count: how many such blocks.
        parameters: of one of them.
        bytes: of one of them, as stored.
    """

    name: str
    count: int
    parameters: int
    bytes: int


def expert_parameters(model: nn.Module) -> int:
    """Parameters of fused experts, and of modules in lists called ``experts``."""
    inside = {
        id(parameter): parameter.numel()
        for path, module in model.named_modules()
        if experts_layout(module) is not None or path.rpartition(".")[2] == "experts"
        for parameter in module.parameters()
    }
    return sum(inside.values())


def model_parts(model: nn.Module, costs: Mapping[str, float]) -> tuple[Part, ...]:
    """The parts in the model's order.

    Args:
        costs: bytes of one number of a parameter, by its path; others are as the model has them.
    """
    sizes: dict[str, tuple[int, float]] = {}
    for path, parameter in model.named_parameters():
        found = _BLOCK.match(path)
        name = found["block"] if found else path.rpartition(".")[0]
        numbers, size = sizes.get(name, (0, 0.0))
        cost = costs.get(path, parameter.element_size())
        sizes[name] = (numbers + parameter.numel(), size + parameter.numel() * cost)
    parts = [Part(name, 1, numbers, round(size)) for name, (numbers, size) in sizes.items()]
    alike = groupby(parts, key=lambda part: (_list(part.name), part.parameters, part.bytes))
    return tuple(_joined(list(group)) for _, group in alike)


def _list(name: str) -> str:
    """The list that a block is in; a module outside is alike to no other."""
    before, _, last = name.rpartition(".")
    return before if last.isdigit() else name


def _joined(parts: list[Part]) -> Part:
    first, last = parts[0], parts[-1]
    name = first.name if len(parts) == 1 else f"{first.name} to {last.name.rpartition('.')[2]}"
    return Part(name, len(parts), first.parameters, first.bytes)
