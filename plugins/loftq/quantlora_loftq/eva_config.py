"""`EvaConfig`: PEFT's ``eva_config``."""

from __future__ import annotations

from dataclasses import dataclass

from quantlora import ConfigError, LoraConfig
from quantlora_loftq.given_config import from_given


@dataclass
class EvaConfig:
    """Settings of the initializer ``eva``, given as ``eva_config``; PEFT's fields.

    Args:
        rho: a layer's rank is at most ``r * rho``; 1 leaves all ranks as they are.
        tau: directions are settled when one more batch leaves a cosine of so much.
        use_label_mask, label_mask_value: leave out tokens whose label has this value.
        whiten: divide each direction by the root of its singular value.
        adjust_scaling_factors: let alpha follow the rank, so that the scaling stays.
    """

    rho: float = 2.0
    tau: float = 0.99
    use_label_mask: bool = True
    label_mask_value: int = -100
    whiten: bool = False
    adjust_scaling_factors: bool = True

    def __post_init__(self) -> None:
        if not self.rho >= 1:
            raise ConfigError(f"rho must be at least 1, got {self.rho!r}.")
        if not 0 <= self.tau <= 1:
            raise ConfigError(f"tau must be in [0, 1], got {self.tau!r}.")

    @classmethod
    def of(cls, config: LoraConfig) -> EvaConfig:
        """What a user gave as ``eva_config``: ours, a dict, PEFT's object, or nothing."""
        given = config.eva_config
        return cls() if given is None else from_given(cls, given, "eva_config")
