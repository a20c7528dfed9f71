"""What is known of a model before it is shared out: its packed layers, and the strategy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.discovery.registration import registry
from quantlora.formats.quantizer import Quantizer
from quantlora.layers.layer import LoraLayer

DDP, ZERO2, FSDP2, ZERO3 = "ddp", "zero2", "fsdp2", "zero3"
STRATEGIES = (DDP, FSDP2, ZERO2, ZERO3)


@dataclass(frozen=True)
class Case:
    """What every check looks at."""

    adapted: AdaptedModel
    strategy: str
    mixed_precision: torch.dtype | None

    @property
    def model(self) -> nn.Module:
        return self.adapted.model

    @property
    def shards(self) -> bool:
        """Whether the strategy cuts parameters apart, so that each process holds a piece."""
        return self.strategy in (FSDP2, ZERO3)

    @cached_property
    def packed(self) -> list[tuple[str, nn.Module, Quantizer]]:
        """The layers that are not float, by path, with their format."""
        return list(_packed(self.adapted))

    def codes(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters that hold codes, by path of their layer, where they can be cut."""
        for path, layer, quantizer in self.packed:
            codes = quantizer.packed_parameter(layer)
            if codes is not None and not quantizer.not_shardable(layer):
                yield path, codes


def _packed(adapted: AdaptedModel) -> Iterator[tuple[str, nn.Module, Quantizer]]:
    for path, module in adapted.modules.items():
        if isinstance(module, LoraLayer):
            base, quantizers = module.base_layer, [module.quantizer]
        else:
            base, quantizers = module, registry().candidates(module)
        yield from ((path, base, quantizer) for quantizer in quantizers if not quantizer.is_float)
