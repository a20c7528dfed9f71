"""Blocks as codes, scales and zero-points, where values are neighbouring integers."""

from __future__ import annotations

import torch

from quantlora import AffineWeight
from quantlora_gguf.layer import GgufLinear

#: Widths of codes that an `AffineWeight` can have.
_BITS = (2, 3, 4, 8)


def to_affine(layer: GgufLinear) -> AffineWeight | None:
    """The layer's grid; None where codes are looked up, or have another width.

    A group with scale 0, whose weights all are its offset, gets scale 1 and codes of 0.
    """
    kind = layer.kind
    if kind.lowest is None or kind.bits not in _BITS:
        return None
    grid = kind.read(layer.weight.detach().reshape(-1, kind.nbytes))
    codes = (grid.values.to(torch.int16) - kind.lowest).to(torch.uint8)
    flat = grid.scales == 0
    scales = torch.where(flat, 1.0, grid.scales)
    offsets = torch.zeros_like(scales) if grid.offsets is None else grid.offsets
    zeros = torch.where(flat, 0.0, -float(kind.lowest)) - offsets / scales
    codes = torch.where(flat, 0, codes)
    size = codes.shape[-1]
    rows = layer.out_features
    return AffineWeight(
        codes.view(rows, -1), scales.view(rows, -1), zeros.view(rows, -1), kind.bits, size
    )


def group_size(layer: GgufLinear) -> int | None:
    """Inputs that share a scale; None for halves, which have none."""
    kind = layer.kind
    if kind.elements == 1:
        return None
    return int(kind.read(layer.weight.detach()[:1, : kind.nbytes]).values.shape[-1])
