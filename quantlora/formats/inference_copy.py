"""A second form of a frozen weight, for the few rows of a token: what it is and what it costs.

One token reads each weight once. Unpacking it first reads and writes several times as much, which
is most of the time that a user waits for text. So a format may say how its weight is kept a second
time, for a kernel that multiplies with packed codes, or as floats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quantlora.units import dtype_name

#: ``x (rows, in_features)``, contiguous, to ``x · Wᵀ (rows, out_features)`` in x's dtype.
Product = Callable[[Tensor], Tensor]

#: More rows than this do not ask for a copy: unpacking the weight is a small part of their time.
FEW_ROWS = 32


@dataclass(frozen=True)
class InferenceCopy:
    """How a layer's weight is kept a second time; nothing is made yet.

    Args:
        form: what it is, for people.
        nbytes: what it takes.
        make: makes it from the layer as it is now, and gives the product with it.
        most_rows: inputs of more rows are faster without it.
    """

    form: str
    nbytes: int
    make: Callable[[], Product]
    most_rows: int = FEW_ROWS


def dense_copy(
    dequantize: Callable[[], Tensor], shape: tuple[int, int], dtype: torch.dtype
) -> InferenceCopy:
    """The weight as floats: the very numbers that are computed with otherwise, for any input.

    Args:
        dequantize: gives the weight ``shape`` in ``dtype``.
    """

    def make() -> Product:
        weight = dequantize()
        return lambda x: F.linear(x, weight)

    nbytes = shape[0] * shape[1] * dtype.itemsize
    return InferenceCopy(f"dense {dtype_name(dtype)}", nbytes, make, most_rows=2**62)
