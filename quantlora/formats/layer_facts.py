"""`LayerFacts`: what a weight format says of one layer, besides how its weight is read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class LayerFacts:
    """The defaults are those of `nn.Linear`, or say that there is nothing special."""

    def shape(self, layer: nn.Module) -> tuple[int, int]:
        """``(out_features, in_features)`` without dequantizing."""
        return int(layer.out_features), int(layer.in_features)  # type: ignore[arg-type]

    def bias(self, layer: nn.Module) -> Tensor | None:
        """The bias ``(out_features,)``, if any."""
        return getattr(layer, "bias", None)

    def device(self, layer: nn.Module) -> torch.device:
        """Where the layer's packed weight lives."""
        tensors = [*layer.parameters(), *layer.buffers()]
        return tensors[0].device

    def compute_dtype(self, layer: nn.Module) -> torch.dtype | None:
        """The dtype products are to be taken in; None: that of the input."""
        return None

    def group_size(self, layer: nn.Module) -> int | None:
        """Inputs that share a scale along a row; None where the format has no such groups."""
        return None

    def group_index(self, layer: nn.Module) -> Tensor | None:
        """The group of each input ``(in_features,)``; None when groups are neighbours."""
        return None

    def weight_tensors(self, layer: nn.Module) -> Iterable[Tensor]:
        """The tensors that the weight is made of: whatever changes it changes one of them.

        By default the parameters and buffers. Called for each token.
        """
        if not layer._modules:
            own = (*layer._parameters.values(), *layer._buffers.values())
            return [tensor for tensor in own if tensor is not None]
        return [*layer.parameters(), *layer.buffers()]

    def not_shardable(self, layer: nn.Module) -> str:
        """Why FSDP2, which puts shards in the parameters' place, would break it; else empty."""
        return ""

    def not_runnable(self, layer: nn.Module) -> str:
        """Why the layer's own forward cannot run on this machine, and the remedy; else empty.

        Such a layer is trained, evaluated and merged all the same, for the LoRA layer around it
        calls `dequantize` and never its forward. Told where a layer is left without one: by
        `wrap`, `unload`, `merge_and_unload` and `quantize`.
        """
        return ""

    def packed_parameter(self, layer: nn.Module) -> Tensor | None:
        """The parameter that holds codes; None where buffers do. Its dtype is mere storage."""
        return None

    def describe(self, layer: nn.Module) -> dict[str, Any]:
        """Facts for `explain`, ``quantlora.json`` and model cards: bits, block size and so on."""
        return {}
