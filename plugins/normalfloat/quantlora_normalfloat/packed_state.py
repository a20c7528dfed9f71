"""A packed layer as settings and plain tensors, and from them."""

from __future__ import annotations

from typing import Any

import torch

from quantlora import PackedState
from quantlora_normalfloat.layer import NormalFloatLinear, settings


def layer_state(layer: NormalFloatLinear) -> PackedState:
    sizes = {"in_features": layer.in_features, "out_features": layer.out_features}
    given = {"bias": layer.bias is not None, "ordered": layer.order is not None}
    own = {**sizes, **given, **settings(layer), "dtype": dtype_name(layer.dtype)}
    return PackedState(own, layer.state_dict())


def layer_from(state: PackedState) -> NormalFloatLinear:
    own: dict[str, Any] = dict(state.settings)
    dtype = getattr(torch, own.pop("dtype"))
    layer = NormalFloatLinear(**own, dtype=dtype, device="meta")
    layer.load_state_dict(dict(state.tensors), assign=True)
    return layer.requires_grad_(False)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
