"""What LoftQ needs and what users run into. Imports no torch: the environment report reads it."""

from __future__ import annotations

from typing import Any

from quantlora.checks import Check, Note
from quantlora.requirements import Requirement

#: For the quantiles of the normal distribution. Not every backend packs with them.
SCIPY = Requirement(
    "scipy>=1.10",
    missing="The required package 'scipy' is not installed. Please install it to continue.",
    fix='pip install "quantlora[loftq]"',
)
NO_CONFIG = Note(
    "`loftq_config` must be specified when `init_lora_weights` is 'loftq'.",
    "Give loftq_config=quantlora_loftq.LoftQConfig(loftq_bits=4), or a dict with these fields.",
)
WRONG_BITS = Note(
    "loftq_bits must be one of the widths that the backend packs to; no other is supported.",
    "Choose another loftq_bits, or a backend that offers it: quantlora plugins lists them.",
)


def check() -> Check:
    return Check(
        "loftq",
        degraded=_without_scipy,
        fields=_smallest,
        notes=lambda: (NO_CONFIG, WRONG_BITS),
    )


def _without_scipy() -> tuple[str, str] | None:
    found = SCIPY.check()
    if found:
        return None
    return f"{found.reason} Without it there are fewer widths than 2, 3, 4 and 8 bits.", found.fix


def _smallest() -> dict[str, Any]:
    """Fields of `wrap` for the first backend that packs here."""
    from quantlora import registry

    usable = [q for q in registry().quantizers.values() if q.bits and q.can_quantize]
    for quantizer in sorted(usable, key=lambda quantizer: -quantizer.preference):
        if not quantizer.availability_error():
            options = {"loftq_bits": 4 if 4 in quantizer.bits else quantizer.bits[0]}
            start = {"init_lora_weights": "loftq", "loftq_config": options}
            return {"backend": quantizer.name, **start}
    return {"init_lora_weights": "loftq"}
