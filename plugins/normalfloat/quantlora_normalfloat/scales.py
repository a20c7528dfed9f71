"""The scales of a layer: as they are, or quantized once more ("double quantization")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlora_normalfloat.blocks import decode, encode

#: Scales that share a scale and zero-point of their own (QLoRA, arXiv:2305.14314, section 3).
_GROUP = 256
#: An error of a scale that equal steps may always have: the largest is 8 times the smallest.
_SLIGHT = 0.014


class Scales(nn.Module):
    """Scales ``(out, blocks)`` in float32."""

    values: Tensor

    def __init__(self, shape: tuple[int, int], device: torch.device | str | None = None) -> None:
        super().__init__()
        self.register_buffer("values", torch.empty(shape, device=device))

    def store(self, values: Tensor) -> None:
        """Keep ``values``; 0, of a block that any scale serves, becomes 1."""
        self.values = torch.where(values == 0, 1.0, values)

    def forward(self) -> Tensor:
        return self.values


class DoubleScales(nn.Module):
    """Scales ``(out, blocks)`` in 8 bits, uniform, by groups of 256: a quarter of the bytes.

    Where the largest scale of a group is many times the smallest, equal steps would ruin the small
    ones: the group's logarithms are kept, and its step is negative as a sign of it.
    """

    codes: Tensor
    steps: Tensor
    zeros: Tensor

    def __init__(self, shape: tuple[int, int], device: torch.device | str | None = None) -> None:
        super().__init__()
        self.register_buffer("codes", torch.empty(shape, dtype=torch.uint8, device=device))
        groups = -(-shape[0] * shape[1] // _GROUP)
        self.register_buffer("steps", torch.empty(1, groups, device=device))
        self.register_buffer("zeros", torch.empty(1, groups, device=device))

    def store(self, values: Tensor) -> None:
        """Keep ``values``; 0, of a block that any scale serves, becomes a neighbour's."""
        flat = _filled(values.reshape(1, -1))
        plain, logs = _coded(flat), _coded(flat.log2())
        wide = _loss(logs[0].exp2(), flat) < _loss(plain[0], flat)
        _, codes, steps, zeros = (
            torch.where(_spread(wide, linear.shape[1]), other, linear)
            for linear, other in zip(plain, logs, strict=True)
        )
        self.codes, self.zeros = codes.view(values.shape), zeros
        self.steps = torch.where(wide, -steps, steps)

    def forward(self) -> Tensor:
        codes = self.codes.reshape(1, -1).float()
        values = decode(codes, self.steps.abs(), self.zeros, _GROUP)
        wide = _spread(self.steps < 0, values.shape[1])
        return torch.where(wide, values.exp2(), values).view(self.codes.shape)


def _filled(flat: Tensor) -> Tensor:
    """Scales ``(1, n)``, those of 0 replaced by the smallest other one of their group."""
    groups = F.pad(flat, (0, -flat.shape[1] % _GROUP)).view(-1, _GROUP)
    smallest = torch.where(groups > 0, groups, torch.inf).amin(1, keepdim=True)
    smallest = torch.where(smallest.isinf(), 1.0, smallest)
    return torch.where(groups > 0, groups, smallest).view(1, -1)[:, : flat.shape[1]]


def _coded(flat: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What comes back, codes ``(1, n)``, steps and zeros ``(1, groups)``."""
    encoded = encode(flat, torch.arange(256.0, device=flat.device), _GROUP, zeros=True)
    assert encoded.zeros is not None
    steps = torch.where(encoded.scales == 0, 1.0, encoded.scales)
    return (
        decode(encoded.codes.float(), steps, encoded.zeros, _GROUP),
        encoded.codes,
        steps,
        encoded.zeros,
    )


def _loss(found: Tensor, flat: Tensor) -> Tensor:
    """Mean square of the relative error by group, ``(1, groups)``; 1.4 % and less count as none."""
    error = (found / flat - 1).clamp(-1, 1).square()
    groups = F.pad(error, (0, -error.shape[1] % _GROUP)).view(-1, _GROUP)
    return (groups.amax(1) > _SLIGHT**2) * groups.mean(1)[None]


def _spread(by_group: Tensor, width: int) -> Tensor:
    """A value of each group ``(1, groups)`` for each of its scales, ``(1, width)``."""
    if by_group.shape[1] == width:
        return by_group
    return by_group.repeat_interleave(_GROUP, 1)[:, :width]
