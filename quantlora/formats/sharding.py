"""What FSDP and ZeRO-3 must know of a format before they cut its parameters apart."""

from __future__ import annotations

from torch import Tensor, nn


class ShardingFacts:
    """A part of `Quantizer`; formats whose weights are buffers need say nothing."""

    def not_shardable(self, layer: nn.Module) -> str:
        """Why ``layer`` would be broken if its parameters were replaced by shards; empty: not."""
        return ""

    def packed_parameter(self, layer: nn.Module) -> Tensor | None:
        """The parameter that holds codes; None where buffers do. Its dtype is mere storage."""
        return None
