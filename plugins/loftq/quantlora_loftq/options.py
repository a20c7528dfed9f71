"""`LoftQConfig`: PEFT's fields, and ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from quantlora import ConfigError
from quantlora_loftq.given_config import from_given
from quantlora_loftq.low_rank import METHODS
from quantlora_loftq.requires import NO_CONFIG, WRONG_BITS

#: The widths of the paper; what a backend offers beside them is added to the message.
PAPER_BITS = (2, 4, 8)


@dataclass
class LoftQConfig:
    """Settings of the initializers ``loftq`` and ``qera``, given as ``loftq_config``.

    Args:
        loftq_bits: bits to quantize to, where the backend offers several; None leaves them to
            ``quantize_options``. A layer that is packed already keeps the bits it has.
        loftq_iter: rounds of quantizing and taking the low-rank step. A layer that is packed
            already gets one low-rank step.
        method: ``"krylov"``, or ``"exact"`` for full SVDs.
        seed: of the random numbers of ``"krylov"``.
        fake: leave the dequantized weight in a float layer instead of the packed one.
        calibration: mean square of each input channel by path, as `input_mean_squares` collects
            it; needed by ``qera``.
    """

    loftq_bits: int | None = None
    loftq_iter: int = 1
    method: str = "krylov"
    seed: int = 0
    fake: bool = False
    calibration: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.loftq_iter, bool) or not isinstance(self.loftq_iter, int):
            raise ConfigError(f"loftq_iter must be an integer, got {self.loftq_iter!r}.")
        if self.loftq_iter < 1:
            raise ConfigError(f"loftq_iter must be at least 1, got {self.loftq_iter}.")
        if self.method not in METHODS:
            raise ConfigError(f"method must be one of {METHODS}, got {self.method!r}.")


def loftq_options(given: Any, initializer: str) -> LoftQConfig:
    """What a user gave as ``loftq_config``: ours, a dict, or PEFT's object."""
    if not given:
        raise ConfigError(str(NO_CONFIG).replace("'loftq'", repr(initializer), 1))
    return from_given(LoftQConfig, given, "loftq_config")


def check_bits(bits: int, offered: tuple[int, ...], backend: str) -> None:
    """Refuse what ``backend`` cannot quantize to, in the words of the field."""
    if bits not in offered:
        widths = sorted({*PAPER_BITS, *offered})
        raise ConfigError(
            f"Only support {', '.join(map(str, widths))} bits quantization, and backend "
            f"{backend!r} offers {', '.join(map(str, offered)) or 'none'}: got {bits!r}.\n"
            f"{WRONG_BITS.fix}"
        )
