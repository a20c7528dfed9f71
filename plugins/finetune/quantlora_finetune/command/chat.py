"""``quantlora chat``: talk with a trained model in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from quantlora_finetune.command.shared_options import (
    Base,
    Folder,
    MaxTokens,
    Seed,
    Temperature,
    TopP,
)

if TYPE_CHECKING:
    from quantlora_finetune.trained.chat import Chat


def chat(
    folder: Folder,
    model: Base = None,
    system: Annotated[
        str | None, typer.Option(help="First message of the conversation, for chat models.")
    ] = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
) -> None:
    """Talk with what was trained. Replies are streamed; Ctrl-C stops one, Ctrl-D ends.

    A line **/base** shows what the model says to the last message without its adapter, **/reset**
    begins a new conversation. Models without a chat template continue each text by itself.

    **Examples**

    - `quantlora chat my-adapter`
    - `quantlora chat my-adapter --temperature 0.7 --top-p 0.9 --system "Answer in one sentence."`
    - `quantlora chat merged-model`
    """
    from rich.console import Console

    from quantlora_finetune.terminal import quiet_upstream

    console = Console(highlight=False)
    with quiet_upstream():
        from transformers import set_seed

        from quantlora_finetune.trained.chat import Chat
        from quantlora_finetune.trained.reply import Sampling
        from quantlora_finetune.trained.trained_model import open_trained

        with console.status(f"loading {folder}"):
            trained = open_trained(folder, model)
        set_seed(seed)
        sampling = Sampling(max_tokens, temperature, top_p)
        talk(Chat(trained, sampling, system, lambda text: typer.echo(text, nl=False)))


def talk(chat: Chat) -> None:
    """Read lines and answer them until the end of the input."""
    from quantlora.errors import FinetuneError
    from quantlora_finetune.trained.chat import QUIT, run_line

    typer.echo(_greeting(chat))
    while (line := _line()) is not None and line.strip() not in QUIT:
        try:
            said = run_line(chat, line) if line.strip() else ""
        except FinetuneError as error:
            said = f"error: {error}"
        typer.echo(f"\n{said}" if said else "\n")


def _greeting(chat: Chat) -> str:
    name = chat.trained.base.name
    how = f"{name} with its adapter" if chat.trained.folder.has_adapter else name
    kind = "" if chat.trained.has_template else " It has no chat template: it continues your text."
    return f"{how}.{kind} /help lists the commands; Ctrl-C stops a reply, Ctrl-D ends."


def _line() -> str | None:
    """What is typed, with the arrow keys and history of readline; None at the end."""
    import sys
    from contextlib import suppress

    if sys.stdin is None:  # closed by who started this
        return None

    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401
    try:
        return input("> ")
    except EOFError:
        typer.echo()
        return None
    except KeyboardInterrupt:
        typer.echo("\nCtrl-D or /quit ends.")
        return ""
