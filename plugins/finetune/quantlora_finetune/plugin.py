"""The entry point: the commands. Light; torch is imported when one runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from quantlora.hookspecs import hookimpl


@hookimpl
def quantlora_commands() -> Iterable[Callable[..., Any]]:
    from quantlora_finetune.command.chat import chat
    from quantlora_finetune.command.check_serving import check_serving
    from quantlora_finetune.command.compare import compare
    from quantlora_finetune.command.data import data
    from quantlora_finetune.command.eval import eval_
    from quantlora_finetune.command.finetune import command
    from quantlora_finetune.command.generate import generate
    from quantlora_finetune.command.merge import merge

    return [command, data, chat, generate, eval_, merge, compare, check_serving]
