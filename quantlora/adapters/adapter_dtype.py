"""``autocast_adapter_dtype=False``: an adapter in the dtype of the float layers under it."""

from __future__ import annotations

import torch
from torch import nn

from quantlora.adapters.adapter_modules import lora_layers


def match_base_dtype(model: nn.Module, adapter: str) -> None:
    """Turn the float32 of ``adapter`` into its layers' own float16 or bfloat16.

    As in PEFT an adapter on a packed layer stays in float32.
    """
    for _, layer in lora_layers(model):
        weight = next(layer.plain_base[0].parameters(), None)
        half = weight is not None and weight.dtype in (torch.float16, torch.bfloat16)
        if weight is not None and half and adapter in layer.adapters:
            for parameter in layer.adapter_tensors(adapter).values():
                parameter.data = parameter.data.to(weight.dtype)
