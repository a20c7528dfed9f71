"""Two wrapped layers of each variant and format, with values everywhere."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import quantlora

BACKENDS = ["auto", "normalfloat", "bitsandbytes_4bit", "bitsandbytes_8bit"]


class Variant(NamedTuple):
    name: str
    fields: dict[str, Any]


VARIANTS = [
    Variant("lora", {}),
    Variant("lora_bias", {"lora_bias": True}),
    Variant("dora", {"use_dora": True}),
]


def wrapped(backend: str, variant: Variant) -> tuple[nn.Sequential, Tensor]:
    """Layers 64 x 64, float64 for "auto"; a batch of 3."""
    torch.manual_seed(0)
    dtype = torch.float64 if backend == "auto" else torch.float32
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).to(dtype)
    quantlora.wrap(model, backend=backend, r=2, init_lora_weights=False, **variant.fields)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
    return model.eval(), torch.randn(3, 64, dtype=dtype)
