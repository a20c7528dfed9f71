"""The entry point: what this plugin offers. Light; torch is imported inside the hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from quantlora.checks import Check
from quantlora.hookspecs import hookimpl

if TYPE_CHECKING:
    from quantlora import Initializer


@hookimpl
def quantlora_initializers() -> Iterable[Initializer]:
    from quantlora_loftq.eva import Eva
    from quantlora_loftq.initializers import LoftQ, Qera
    from quantlora_loftq.principal import OLoRA, Orthogonal, PiSSA

    return [LoftQ(), Qera(), PiSSA(), OLoRA(), Orthogonal(), Eva()]


@hookimpl
def quantlora_checks() -> Iterable[Check]:
    from quantlora_loftq.requires import check

    return [check()]


@hookimpl
def quantlora_commands() -> Iterable[Callable[..., Any]]:
    from quantlora_loftq.command.cli import loftq

    return [loftq]
