"""The scale of each adapter, so that a compiled graph sees a new one without compiling again."""

from __future__ import annotations

from collections import UserDict

import torch
from torch import Tensor


class Scalings(UserDict[str, float]):
    """Scales by adapter name, each also as a tensor ``(1,)``.

    `torch.compile` takes a number for a constant of the graph, a tensor for an input. A new value
    is written into the same tensor, which the compiled graph reads. One of no dimensions would be
    taken for a number.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        super().__init__()

    def __setitem__(self, name: str, value: float) -> None:
        super().__setitem__(name, value)
        with torch.inference_mode(False):
            new = torch.tensor([value], dtype=torch.float64, device="cpu")
            self._tensors.setdefault(name, new).copy_(new)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        del self._tensors[name]

    def operand(self, name: str) -> float | Tensor:
        """The scale to compute with: a number, or while a graph is traced, a tensor in its place.

        Of no dimensions, so that products keep their own dtype and device as with a number.
        """
        return self._tensors[name][0] if torch.compiler.is_compiling() else self.data[name]
