"""``quantlora data``: what a training would see in a file, before it is started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from quantlora_finetune.command.shared_options import next_command

if TYPE_CHECKING:
    from rich.console import Console

    from quantlora_finetune.data.examples import Example, TrainingTokenizer
    from quantlora_finetune.data.overview import Overview

#: Examples that are printed, and letters of each.
_SHOWN, _LETTERS = 3, 800
_WIDTH = 40


def data(
    data: Annotated[str, typer.Argument(help="As --data of `quantlora finetune`.", metavar="DATA")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Whose tokenizer and template. Default: Gemma 3 270M's."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="The part of a hub data set.")] = "train",
    map: Annotated[str | None, typer.Option("--map", help="Names of columns, ours=theirs.")] = None,
    length: Annotated[int, typer.Option(min=8, metavar="N", help="Tokens per example.")] = 128,
    template: Annotated[
        str | None,
        typer.Option(metavar="FILE|NAME", help="How conversations are written, as in training."),
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="System message of the conversations that have none.")
    ] = None,
    train_on_prompt: Annotated[
        bool, typer.Option("--train-on-prompt", help="Learn prompts too.")
    ] = False,
    packing: Annotated[
        bool, typer.Option("--packing", help="Count the rows that examples are packed into.")
    ] = False,
) -> None:
    """Show what a training would see in DATA: forms, token lengths, examples, what is cut off.

    In the examples the tokens that are learned are green, or between «» where there are no colors;
    the others are given, and dim.

    **Examples**

    - `quantlora data chats.jsonl --model Qwen/Qwen3-0.6B`
    - `quantlora data faq.csv --map prompt=question,completion=answer --length 256`
    - `quantlora data chats.jsonl --template chatml --system "Be brief." --packing`
    """
    from rich.console import Console

    from quantlora.errors import FinetuneError
    from quantlora_finetune.terminal import quiet_upstream

    console = Console(highlight=False)
    with quiet_upstream():
        from quantlora_finetune.data.examples import TrainingTokenizer
        from quantlora_finetune.data.overview import overview
        from quantlora_finetune.data.reading_progress import reading_progress
        from quantlora_finetune.model.base_model import base_named, check_length
        from quantlora_finetune.options.data import DataOptions

        options = DataOptions(
            data, map, split, length, template=template, system=system,
            train_on_prompt=train_on_prompt, packing=packing,
        )  # fmt: skip
        base = base_named(model)
        check_length(base, length)
        tokenizer = TrainingTokenizer(base.tokenizer, options)
        with reading_progress(console, data, tokenizer):
            found = overview(options, tokenizer)
    _show_counts(found, console)
    _show_lengths(found, console)
    for example in found.examples[:_SHOWN]:
        _show_example(example, tokenizer, console)
    if not found.examples:
        raise FinetuneError(
            f"{data} gives no example of {length} tokens: use more text, or another --length."
        )
    named = {
        "--model": model, "--data": data, "--map": map, "--length": str(length),
        "--template": template, "--system": system, "--trainer": found.trainer,
    }  # fmt: skip
    words = [word for name, value in named.items() if value for word in (name, value)]
    switches = {"--train-on-prompt": train_on_prompt, "--packing": packing}
    next_command(console, "finetune", *words, *(name for name, on in switches.items() if on))


def _show_counts(found: Overview, console: Console) -> None:
    forms = ", ".join(f"{count} {form}" for form, count in found.forms.items())
    console.print(f"Rows: {forms}; {found.empty} left out.", soft_wrap=True)
    for reason, count in found.reasons.items():
        console.print(f"Left out: {count}, {reason}.", style="yellow", soft_wrap=True, markup=False)
    for role, count in found.roles.items():
        told = (
            f"The role {role!r} is in {count} conversations: most chat templates have no such one."
        )
        console.print(told, style="yellow", soft_wrap=True, markup=False)
    console.print(
        f"Examples: {len(found.examples)} of at most {found.length} tokens, {found.tokens:,} "
        f"tokens in all, {found.learned:,} of them learned.",
        soft_wrap=True,
    )
    if found.rows is not None:
        console.print(f"Packed: {found.rows} rows of at most {found.length} tokens.")
    if found.cut or found.left_out:
        console.print(
            f"Longer than --length {found.length}: {found.cut} are cut off at their end, "
            f"{found.left_out} whose prompt alone fills it are left out.",
            style="yellow",
            soft_wrap=True,
        )


def _show_lengths(found: Overview, console: Console) -> None:
    from quantlora_finetune.data.overview import histogram, length_for

    if not found.lengths:
        return
    bars = histogram(found.lengths)
    most = max(count for _, count in bars)
    name_width = max(len(name) for name, _ in bars)
    console.print("\nTokens of an example, before it is cut off:", style="bold")
    for name, count in bars:
        console.print(
            f"  {name:>{name_width}}  {'█' * round(_WIDTH * count / most):<{_WIDTH}} {count}"
        )
    console.print(f"95 % of them fit into --length {length_for(found.lengths)}.\n")


def _show_example(example: Example, tokenizer: TrainingTokenizer, console: Console) -> None:
    from rich.panel import Panel
    from rich.text import Text

    decode = tokenizer.tokenizer.decode
    given, learned = (
        str(decode(ids)) for ids in
        (example.input_ids[: example.learned_from], example.input_ids[example.learned_from :])
    )  # fmt: skip
    if len(given) > _LETTERS:
        given = f"... {given[-_LETTERS:]}"
    if len(learned) > _LETTERS:
        learned = f"{learned[:_LETTERS]} ..."
    end = Text(" (cut off here)", "yellow") if example.is_cut else Text("")
    is_plain = console.no_color or not console.is_terminal
    marked = f"«{learned}»" if is_plain else learned
    text = Text.assemble((given, "dim"), (marked, "green"), end)
    title = f"{len(example.input_ids)} tokens, {example.learned} learned"
    console.print(Panel(text, title=title, title_align="left"))
