"""What a run is to do: everything that its result depends on."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantlora import ConfigError, LoraConfig, Quantizer, best_quantizer, by_pattern, registry
from quantlora_loftq.options import LoftQConfig, check_bits


@dataclass(frozen=True)
class Recipe:
    """The options of ``quantlora loftq``; kept beside the finished layers, to go on later."""

    model: str
    bits: int = 4
    iterations: int = 5
    rank: int = 16
    alpha: float = 16
    backend: str | None = None
    target_modules: list[str] | str = "all-linear"
    exclude_modules: list[str] | None = None
    bits_pattern: dict[str, int] = field(default_factory=dict)
    fake: bool = False
    method: str = "krylov"
    seed: int = 0
    threads: int = 1
    device: str = "cpu"

    @property
    def name(self) -> str:
        """The result's folder, as the LoftQ hub calls it."""
        model = re.sub(r"[^\w.-]", "-", Path(self.model).name)
        return f"{model}-{self.bits}bit-{self.rank}rank"

    @property
    def text(self) -> str:
        fields = dataclasses.asdict(
            self
        )  # patterns keep their order: the first that matches counts
        return json.dumps(dict(sorted(fields.items())), indent=2)

    def lora_config(self) -> LoraConfig:
        targets = self.target_modules
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=targets if isinstance(targets, str) else list(targets),
            exclude_modules=self.exclude_modules,
        )

    def quantizer(self) -> Quantizer:
        """The backend asked for, or the preferred one that offers the bits.

        Raises ConfigError where there is none, or a setting is out of range.
        """
        LoftQConfig(loftq_iter=self.iterations, method=self.method)
        widths = {self.bits, *self.bits_pattern.values()}
        if self.backend is None:
            return best_quantizer(*sorted(widths))
        quantizer = registry().quantizer(self.backend)
        for bits in sorted(widths):
            check_bits(bits, quantizer.bits, quantizer.name)
        return quantizer

    def bits_for(self, path: str) -> int:
        return by_pattern(path, self.bits_pattern, self.bits)


def parse_patterns(given: Iterable[str]) -> dict[str, int]:
    """``PATTERN=BITS`` each."""
    found: dict[str, Any] = dict(pair.rpartition("=")[::2] for pair in given)
    for pattern, bits in found.items():
        if not pattern or not bits.isdigit():
            raise ConfigError(f"--bits-pattern must be PATTERN=BITS, got {pattern}={bits}.")
    return {pattern: int(bits) for pattern, bits in found.items()}
