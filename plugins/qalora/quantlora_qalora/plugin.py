"""The entry point: what this plugin offers. Light; torch is imported inside the hooks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from quantlora.checks import Check
from quantlora.hookspecs import hookimpl

if TYPE_CHECKING:
    from quantlora import LoraLayer


@hookimpl
def quantlora_layer_wrappers() -> Iterable[type[LoraLayer]]:
    from quantlora_qalora.layer import QaloraLinear

    return [QaloraLinear]


@hookimpl
def quantlora_checks() -> Iterable[Check]:
    from quantlora_qalora.requires import check

    return [check()]
