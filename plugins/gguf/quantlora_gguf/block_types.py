"""The block types by name: how large they are, and how they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlora_gguf import k_blocks, simple_blocks
from quantlora_gguf.grid import Grid

#: Weights unpacked at a time: the temporaries stay in the cache and out of the peak memory.
_CHUNK = 1 << 19


@dataclass(frozen=True)
class BlockType:
    """One of ggml's types.

    Args:
        name: as in ``gguf.GGMLQuantizationType``.
        number: the type's number in files.
        elements: weights in a block; rows are multiples of it.
        nbytes: bytes of a block.
        bits: bits of a code.
        lowest: the smallest value of a code where values are neighbouring integers, else None.
        read: uint8 ``(blocks, nbytes)`` to a `Grid`.
    """

    name: str
    number: int
    elements: int
    nbytes: int
    bits: int
    lowest: int | None
    read: Callable[[Tensor], Grid]

    def row_bytes(self, in_features: int) -> int:
        """Bytes of a row; ``in_features`` is a multiple of `elements`."""
        return in_features // self.elements * self.nbytes

    def row_elements(self, nbytes: int) -> int:
        """Weights in a row of ``nbytes``."""
        return nbytes // self.nbytes * self.elements

    def dequantize(self, packed: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows ``(..., row_bytes)`` as weights ``(..., in_features)``, rounded once."""
        rows = packed.reshape(-1, packed.shape[-1])
        width = self.row_elements(packed.shape[-1])
        out = torch.empty(len(rows), width, dtype=dtype, device=packed.device)
        step = max(1, _CHUNK // max(1, width))
        for start in range(0, len(rows), step):
            blocks = rows[start : start + step].reshape(-1, self.nbytes)
            out[start : start + step] = self.read(blocks).weights().view(-1, width)
        return out.view(*packed.shape[:-1], width)


def _types(*rows: tuple[str, int, int, int, int, int | None]) -> dict[str, BlockType]:
    readers = {**vars(simple_blocks), **vars(k_blocks)}
    return {row[0]: BlockType(*row, read=readers[row[0].lower()]) for row in rows}


#: By name: number, weights and bytes of a block, bits and lowest value of a code.
BLOCK_TYPES = _types(
    ("F16", 1, 1, 2, 16, None),
    ("Q4_0", 2, 32, 18, 4, -8),
    ("Q4_1", 3, 32, 20, 4, 0),
    ("Q5_0", 6, 32, 22, 5, -16),
    ("Q5_1", 7, 32, 24, 5, 0),
    ("Q8_0", 8, 32, 34, 8, -128),
    ("Q2_K", 10, 256, 84, 2, 0),
    ("Q3_K", 11, 256, 110, 3, -4),
    ("Q4_K", 12, 256, 144, 4, 0),
    ("Q5_K", 13, 256, 176, 5, 0),
    ("Q6_K", 14, 256, 210, 6, -32),
    ("IQ4_NL", 20, 32, 18, 4, None),
    ("IQ4_XS", 23, 256, 136, 4, None),
    ("BF16", 30, 1, 2, 16, None),
    ("MXFP4", 39, 32, 17, 4, None),
)
