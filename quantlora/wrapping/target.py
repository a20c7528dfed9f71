"""`Target`: one layer that is going to have an adapter."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from quantlora.config.lora_config import LoraConfig
from quantlora.config.patterns import by_pattern
from quantlora.names import plain_path


@dataclass(frozen=True)
class Target:
    """One layer to wrap: its ``path``, the ``layer``, and its own rank and alpha.

    With ``parameters``, only those parameters of it get an adapter (``target_parameters``);
    with ``tokens`` only the rows of those (``trainable_token_indices``).
    """

    path: str
    layer: nn.Module
    r: int
    lora_alpha: float
    parameters: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()

    @classmethod
    def of(cls, path: str, layer: nn.Module, config: LoraConfig) -> Target:
        """The layer as a whole, with the rank and alpha that the patterns give its path."""
        name = plain_path(path)
        r = by_pattern(name, config.rank_pattern, config.r)
        return cls(path, layer, r, by_pattern(name, config.alpha_pattern, config.lora_alpha))
