"""Layers whose sizes do not allow what is asked for, or make no use of it."""

from __future__ import annotations

from collections.abc import Mapping

from quantlora.config.lora_config import LoraConfig
from quantlora.errors import ConfigError, LayerError
from quantlora.formats.quantizer import Quantizer
from quantlora.suggestions import some
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


def too_wide(shapes: Mapping[Target, tuple[int, int]]) -> str:
    """What to say of ranks beyond what an update can have; empty where there are none."""
    wide = [target for target, shape in shapes.items() if target.r > min(shape)]
    if not wide:
        return ""
    first, shape = wide[0], shapes[wide[0]]
    return (
        f"{some(target.path for target in wide)}: the rank is larger than the layer ({first.path}: "
        f"rank {first.r}, layer {shape[0]} x {shape[1]}). It works, but the update has no more "
        f"rank than {min(shape)}; rank_pattern gives layers a rank of their own."
    )
