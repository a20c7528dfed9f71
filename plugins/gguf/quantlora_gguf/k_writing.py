"""Codes and scales into the bytes of a block: each the inverse of its reader in `k_blocks`.

``blocks`` is uint8 ``(blocks, bytes of a block)`` and changed in place. Codes are ``(blocks,
weights)``, scales and minima ``(blocks, groups)``, all from 0 on, in uint8.
"""

from __future__ import annotations

import torch
from torch import Tensor


def q2_k_codes(blocks: Tensor, codes: Tensor) -> None:
    blocks[:, 16:80] = _joined(codes.view(-1, 2, 4, 32), 2).flatten(1)


def q2_k_scales(blocks: Tensor, steps: Tensor, lows: Tensor) -> None:
    blocks[:, :16] = steps | (lows << 4)


def q3_k_codes(blocks: Tensor, codes: Tensor) -> None:
    blocks[:, :32] = _joined((codes >> 2).view(-1, 8, 32), 1)
    blocks[:, 32:96] = _joined((codes & 3).view(-1, 2, 4, 32), 2).flatten(1)


def q3_k_scales(blocks: Tensor, steps: Tensor) -> None:
    blocks[:, 96:104] = _joined((steps & 15).view(-1, 2, 8), 4)
    blocks[:, 104:108] = _joined((steps >> 4).view(-1, 4, 4), 2)


def q4_k_codes(blocks: Tensor, codes: Tensor) -> None:
    blocks[:, 16:] = _joined(codes.view(-1, 4, 2, 32), 4).flatten(1)


def q4_k_scales(blocks: Tensor, steps: Tensor, lows: Tensor) -> None:
    """Four scales and four minima whole; of the others four bits, and two in spare places."""
    blocks[:, 4:8] = steps[:, :4] | ((steps[:, 4:] >> 4) << 6)
    blocks[:, 8:12] = lows[:, :4] | ((lows[:, 4:] >> 4) << 6)
    blocks[:, 12:16] = (steps[:, 4:] & 15) | ((lows[:, 4:] & 15) << 4)


def q5_k_codes(blocks: Tensor, codes: Tensor) -> None:
    blocks[:, 16:48] = _joined((codes >> 4).view(-1, 8, 32), 1)
    blocks[:, 48:] = _joined((codes & 15).view(-1, 4, 2, 32), 4).flatten(1)


def q6_k_codes(blocks: Tensor, codes: Tensor) -> None:
    blocks[:, :128] = _joined((codes & 15).view(-1, 2, 2, 64), 4).flatten(1)
    blocks[:, 128:192] = _joined((codes >> 4).view(-1, 2, 4, 32), 2).flatten(1)


def q6_k_scales(blocks: Tensor, steps: Tensor) -> None:
    blocks[:, 192:208] = steps ^ 128  # int8 is counted from -128


def iq4_nl_codes(blocks: Tensor, codes: Tensor) -> None:
    blocks[:, 2:] = _joined(codes.view(-1, 2, 16), 4)


def iq4_xs_codes(blocks: Tensor, codes: Tensor) -> None:
    blocks[:, 8:] = _joined(codes.view(-1, 8, 2, 16), 4).flatten(1)


def iq4_xs_scales(blocks: Tensor, steps: Tensor) -> None:
    blocks[:, 2:4] = _joined((steps >> 4).view(-1, 2, 4, 1), 2).flatten(1)
    blocks[:, 4:8] = _joined((steps & 15).view(-1, 4, 2, 1), 4).flatten(1)


def put_half(blocks: Tensor, start: int, values: Tensor) -> Tensor:
    """``values`` ``(blocks,)`` as float16 at byte ``start``; returned as they were rounded."""
    rounded = values.to(torch.float16)
    blocks[:, start : start + 2] = rounded[:, None].view(torch.uint8)
    return rounded.float()


def _joined(codes: Tensor, bits: int) -> Tensor:
    """``(..., 8 // bits, n)`` codes as ``(..., n)`` bytes, the first in the lowest bits."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
    shifted: Tensor = codes << shifts[:, None]
    return shifted.sum(-2, dtype=torch.uint8)
