"""The entry point: what this plugin offers. Light; torch is imported inside the hooks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from quantlora.checks import Check
from quantlora.hookspecs import hookimpl

if TYPE_CHECKING:
    from quantlora import ModelLoader, Quantizer


@hookimpl
def quantlora_quantizers() -> Iterable[Quantizer]:
    from quantlora_fp8.quantizer import Fp8Quantizer

    return [Fp8Quantizer()]


@hookimpl
def quantlora_loaders() -> Iterable[ModelLoader]:
    from quantlora_fp8.loader import Fp8Loader

    return [Fp8Loader()]


@hookimpl
def quantlora_checks() -> Iterable[Check]:
    from quantlora_fp8.requires import CHECK

    return [CHECK]
