"""Layers whose sizes do not allow what is asked for."""

from __future__ import annotations

from quantlora.config.lora_config import LoraConfig
from quantlora.errors import ConfigError, LayerError
from quantlora.formats.quantizer import Quantizer
from quantlora.wrapping.target import Target


def check_rank(target: Target, shape: tuple[int, int], config: LoraConfig) -> None:
    """Factors that are taken from a matrix have no more rank than it."""
    if target.r > min(shape) and config.init_lora_weights not in (True, False, "gaussian"):
        raise ConfigError(
            f"{target.path}: rank {target.r} is larger than the layer ({shape[0]} x {shape[1]}), "
            f"and {config.init_lora_weights!r} takes A and B from its weight; use r <= "
            f"{min(shape)}, or give this layer its own rank by rank_pattern."
        )


def check_not_empty(path: str, shape: tuple[int, int], quantizer: Quantizer) -> None:
    """Float layers without inputs or outputs are as in PEFT; no format packs one."""
    if not shape[0] * shape[1] and not quantizer.is_float:
        raise LayerError(
            f"{path}: the layer has {shape[1]} inputs and {shape[0]} outputs, so there is nothing "
            f"to pack: leave it out (exclude_modules)."
        )
