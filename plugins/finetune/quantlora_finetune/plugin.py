"""The entry point: the command. Light; torch is imported when it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from quantlora.hookspecs import hookimpl


@hookimpl
def quantlora_commands() -> Iterable[Callable[..., Any]]:
    from quantlora_finetune.command import command

    return [command]
