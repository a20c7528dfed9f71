"""The entry point: what this plugin offers. Light; torch is imported inside the hooks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from quantlora.checks import Check
from quantlora.hookspecs import hookimpl

if TYPE_CHECKING:
    from quantlora import Quantizer


@hookimpl
def quantlora_quantizers() -> Iterable[Quantizer]:
    from quantlora_quanto.quantizer import QuantoQuantizer

    return [QuantoQuantizer()]


@hookimpl
def quantlora_checks() -> Iterable[Check]:
    from quantlora_quanto.requires import CHECK

    return [CHECK]
