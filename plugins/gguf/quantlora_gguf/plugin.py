"""The entry point: what this plugin offers. Light; torch is imported inside the hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from quantlora.checks import Check
from quantlora.hookspecs import hookimpl

if TYPE_CHECKING:
    from quantlora import ModelLoader, Quantizer


@hookimpl
def quantlora_quantizers() -> Iterable[Quantizer]:
    from quantlora_gguf.quantizer import GgufQuantizer

    return [GgufQuantizer()]


@hookimpl
def quantlora_loaders() -> Iterable[ModelLoader]:
    from quantlora_gguf.loader import GgufLoader

    return [GgufLoader()]


@hookimpl
def quantlora_checks() -> Iterable[Check]:
    from quantlora_gguf.requires import GGUF

    return [Check("gguf", requires=(GGUF,))]


@hookimpl
def quantlora_commands() -> Iterable[Callable[..., Any]]:
    from quantlora_gguf.command import export

    return [export]
