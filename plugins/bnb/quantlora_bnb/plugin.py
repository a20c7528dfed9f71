"""The entry point: what this plugin offers. Light; torch is imported inside the hooks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from quantlora.checks import Check
from quantlora.hookspecs import hookimpl
from quantlora_bnb.requires import REQUIRES, repacks_here

if TYPE_CHECKING:
    from quantlora import Quantizer


@hookimpl
def quantlora_quantizers() -> Iterable[Quantizer]:
    from quantlora_bnb.eight_bit import Bitsandbytes8bit
    from quantlora_bnb.four_bit import Bitsandbytes4bit

    return [Bitsandbytes4bit(), Bitsandbytes8bit()]


@hookimpl
def quantlora_checks() -> Iterable[Check]:
    return [
        Check("bitsandbytes_4bit", requires=REQUIRES, notes=repacks_here),
        Check("bitsandbytes_8bit", requires=REQUIRES),
    ]
