"""The scales of a layer: as they are, or quantized once more ("double quantization")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantlora_normalfloat.blocks import decode, encode

#: Scales that share a scale and zero-point of their own (QLoRA, arXiv:2305.14314, section 3).
_GROUP = 256


class Scales(nn.Module):
    """Scales ``(out, blocks)`` in float32."""

    values: Tensor

    def __init__(self, shape: tuple[int, int], device: torch.device | str | None = None) -> None:
        super().__init__()
        self.register_buffer("values", torch.empty(shape, device=device))

    def store(self, values: Tensor) -> None:
        self.values = values

    def forward(self) -> Tensor:
        return self.values


class DoubleScales(nn.Module):
    """Scales ``(out, blocks)`` in 8 bits, uniform, by groups of 256: a quarter of the bytes."""

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
        levels = torch.arange(256.0, device=values.device)
        encoded = encode(values.reshape(1, -1), levels, _GROUP, zeros=True)
        assert encoded.zeros is not None
        self.codes = encoded.codes.view(values.shape)
        self.steps, self.zeros = encoded.scales, encoded.zeros

    def forward(self) -> Tensor:
        codes = self.codes.reshape(1, -1).float()
        return decode(codes, self.steps, self.zeros, _GROUP).view(self.codes.shape)
