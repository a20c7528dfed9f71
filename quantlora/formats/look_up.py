"""Rows of a small table by index: what unpacking a weight takes most of its time for.

torch copies a row of a table by a loop over its elements. Where a row has the size of a wider
element, it is moved as one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Element types by their bytes; only moved, never computed with.
_WIDE = {2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


def look_up(index: Tensor, table: Tensor) -> Tensor:
    """``table[index]`` as a flat tensor ``(n * k,)``.

    Args:
        index: ``(n,)``, int32 or int64.
        table: ``(m, k)`` floats, contiguous: all k values of a packed word, say.
    """
    wide = _WIDE.get(table.shape[1] * table.itemsize)
    if wide is None or torch.compiler.is_compiling():
        return F.embedding(index, table).view(-1)
    return table.view(wide).view(-1).index_select(0, index).view(table.dtype)
