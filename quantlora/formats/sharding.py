"""What must be known of a format before FSDP2 or ZeRO-3 cuts its parameters apart."""

from __future__ import annotations

from torch import Tensor, nn


class ShardingFacts:
    """A part of `Quantizer`; formats whose weights are buffers need say nothing."""

    def not_shardable(self, layer: nn.Module) -> str:
        """Why FSDP2 would break ``layer``: it puts shards, new objects, in its parameters' place.

        Empty where it would not.
        """
        return ""

    def packed_parameter(self, layer: nn.Module) -> Tensor | None:
        """The parameter that holds codes; None where buffers do. Its dtype is mere storage."""
        return None
