"""A backend's check as a subject of the operations: small layers as the check makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from quantlora.checks import Check
from quantlora.config.lora_config import LoraConfig
from quantlora.discovery.registration import registry

#: Largest relative error of outputs and gradients; bfloat16 products on any device have it.
_TOLERANCE = 3e-2

_IN, _OUT = 128, 256


class Sample:
    """Layers of one backend, on the GPU where there is one.

    An initializer is about the first adapter of its layer; further ones are plain.
    """

    biases = (True,)
    tolerances = dict.fromkeys((torch.float32, torch.bfloat16, torch.float16), _TOLERANCE)
    #: A merged weight is no further off than one of zeros: how coarse a format is, is its own.
    closeness = 1.0

    def __init__(self, check: Check) -> None:
        self.check = check
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.given = _fields(check)

    @property
    def quantizer(self) -> str:
        """The one that is asked for, else the one that takes the check's layer."""
        asked = self.given.get("backend", "auto")
        return str(registry().match("proj", self.layer()).name if asked == "auto" else asked)

    def layer(self, *, bias: bool | None = None, dtype: torch.dtype | None = None) -> nn.Module:
        if self.check.layer is not None:
            return self.check.layer().to(self.device)
        linear = nn.Linear(_IN, _OUT, device=self.device, dtype=dtype)
        quantizer = registry().quantizers.get(self.check.backend)
        if quantizer is None:
            return linear
        quantizer.require()
        return quantizer.quantize(linear).to(self.device)

    def fields(self, adapter: str) -> Mapping[str, Any]:
        if adapter == "default" or "init_lora_weights" not in self.given:
            return self.given
        return {}


def _fields(check: Check) -> dict[str, Any]:
    """Those that the check gives, or that choose the variant or initializer of its name."""
    if check.fields is not None:
        return dict(check.fields())
    if check.backend in registry().initializers:
        return {"init_lora_weights": check.backend}
    chosen = check.backend in registry().variants
    return LoraConfig.variant_fields(check.backend) if chosen else {}
