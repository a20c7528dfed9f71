"""``quantlora generate``: replies to prompts, one or a file of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantlora_finetune.command.shared_options import (
    Base,
    BatchSize,
    Folder,
    MaxTokens,
    Seed,
    Temperature,
    TopP,
)

if TYPE_CHECKING:
    from quantlora_finetune.trained.prompts import Prompt


def generate(
    folder: Folder,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="A text; may be given repeatedly.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            help="A .jsonl file whose rows have `prompt` or `messages`, or a text with a prompt on "
            "each line.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A .jsonl file to write; default: the terminal."),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Put each text into the model's chat template, as a user's."),
    ] = False,
    base: Annotated[
        bool, typer.Option("--base", help="Also reply without the adapter, to compare.")
    ] = False,
    model: Base = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    batch_size: BatchSize = 8,
    seed: Seed = 0,
) -> None:
    """Reply to prompts, and print or write the replies as JSON lines.

    Each line has `prompt`, `reply` and, with **--base**, `base_reply`.

    **Examples**

    - `quantlora generate my-adapter --prompt "The with statement"`
    - `quantlora generate my-adapter --file prompts.jsonl --output replies.jsonl`
    - `quantlora generate my-adapter --chat --base -p "What is a closure?"`
    """
    from rich.console import Console

    from quantlora_finetune.terminal import quiet_upstream

    with quiet_upstream():
        from quantlora_finetune.trained.generation import Request, generate_all
        from quantlora_finetune.trained.reply import Sampling

        asked = _asked(prompt or [], file, chat)
        request = Request(folder, model, asked, Sampling(max_tokens, temperature, top_p), seed)
        console = Console(stderr=True, highlight=False)
        generate_all(request, output, batch_size, with_base=base, console=console)


def _asked(prompts: list[str], file: Path | None, chat: bool) -> list[Prompt]:
    from quantlora.errors import FinetuneError
    from quantlora_finetune.trained.prompts import prompts_in

    if not prompts and file is None:
        raise FinetuneError("nothing to reply to: give --prompt TEXT, or --file FILE.")
    asked: list[Prompt] = [*prompts, *(prompts_in(file) if file else [])]
    if not chat:
        return asked
    return [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in asked]
