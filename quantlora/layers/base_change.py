"""What an initializer took out of a base: so that a file can say it, and make up for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Numbers in a sketch.
SKETCH = 16
#: Inputs that a layer with one output may have.
_LONG = 2**17


def sketch(weight: Tensor) -> Tensor:
    """``SKETCH`` numbers ``uᵀ · W · v``, with signs as u and v: ``(SKETCH,)`` in float64.

    The squared distance of two sketches is on average ``SKETCH`` times that of the weights, so
    rounding a weight moves its sketch by little, and another weight has another one.
    """
    weight = _as_matrix(weight)
    out, width = (_signs(size, salt, weight) for salt, size in enumerate(weight.shape))
    return ((weight.float() @ width) * out).sum(0, dtype=torch.float64).cpu()


def _as_matrix(weight: Tensor) -> Tensor:
    """A long row, which several stacks of matrices are, as rows and columns: signs for each of its
    numbers would be sixteen times as large as itself.
    """
    rows, numbers = weight.shape
    if rows > 1 or numbers <= _LONG:
        return weight
    columns = next(n for n in range(int(numbers**0.5), 0, -1) if numbers % n == 0)
    return weight.reshape(-1, columns)


def _signs(size: int, salt: int, like: Tensor) -> Tensor:
    """Signs ``(size, SKETCH)`` by a hash of the position: the same in every version of torch."""
    positions = torch.arange(size * SKETCH, dtype=torch.int64).view(size, SKETCH)
    mixed = (positions + salt * 0x51ED27 + 1) * 0x9E3779B1 & 0xFFFFFFFF
    mixed = ((mixed ^ mixed >> 15) * 0x85EBCA6B) & 0xFFFFFFFF
    mixed = ((mixed ^ mixed >> 13) * 0xC2B2AE35) & 0xFFFFFFFF
    return ((mixed >> 16 & 1) * 2 - 1).to(like.device, torch.float32)


@dataclass(frozen=True)
class BaseChange:
    """One layer's base, before and after an initializer: ``original ≈ changed + B · A``.

    Args:
        initializer, adapter: who changed it, and for which adapter.
        factors: A ``(r, in)`` and B ``(out, r)``, the scaling within B, on the CPU; None where
            the adapter's first values are no such product.
        original, changed: sketches of the base.
    """

    initializer: str
    adapter: str
    factors: tuple[Tensor, Tensor] | None
    original: Tensor
    changed: Tensor

    @property
    def gap(self) -> float:
        """``‖original - changed - B · A‖ / ‖original‖``, estimated."""
        rest = self.original - self.changed
        if self.factors is not None:
            A, B = self.factors
            rest = rest - sketch(B.float() @ A.float())
        return float(rest.norm() / self.original.norm().clamp(min=1e-300))

    def after(self, before: BaseChange | None) -> BaseChange:
        """This change and one before it, as one."""
        if before is None:
            return self
        both = None
        if self.factors is not None and before.factors is not None:
            (A, B), (first_A, first_B) = self.factors, before.factors
            both = torch.cat([first_A, A]), torch.cat([first_B, B], 1)
        return BaseChange(self.initializer, self.adapter, both, before.original, self.changed)
