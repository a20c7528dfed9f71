"""The uniform form as a grid that others fill: any codes, scales and float zero-points."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantlora import AffineWeight
from quantlora_normalfloat.layer import NormalFloatLinear
from quantlora_normalfloat.packing import pack
from quantlora_normalfloat.tables import level_table


def to_affine(layer: NormalFloatLinear) -> AffineWeight | None:
    """The layer's codes, scales and zero-points; None for the "nf" forms, which have no grid."""
    if layer.zeros is None:
        return None
    codes, scales = layer.codes(), layer.scales()
    return AffineWeight(
        codes, scales, layer.zeros, layer.bits, layer.block_size, layer.group_index()
    )


def from_affine(weight: AffineWeight, bias: Tensor | None) -> NormalFloatLinear:
    """A uniform layer with just these codes, scales and zero-points.

    Where the groups are not neighbours, the codes are stored with the inputs of a group next to
    each other, and the order is kept.
    """
    index, codes = weight.group_index, weight.codes
    out_features, in_features = codes.shape
    layer = NormalFloatLinear(
        in_features,
        out_features,
        bias=False,
        bits=weight.bits,
        quant_type="uniform",
        block_size=weight.group_size,
        ordered=index is not None,
        device="meta",
        dtype=weight.scales.dtype,
    )
    if index is not None:
        layer.order = torch.argsort(index, stable=True).to(torch.int32)
        codes = codes.index_select(1, layer.order)
    layer.packed, layer.zeros = pack(codes, weight.bits), weight.zeros.float()
    layer.levels = level_table(weight.bits, "uniform").to(codes.device)
    layer.scales.store(weight.scales.float())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer
