"""``quantlora merge``: the adapter folded into its base, as a plain model's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantlora_finetune.command.shared_options import Base, Folder, next_command
from quantlora_finetune.options.choices import Dtype, MergeMode

if TYPE_CHECKING:
    from quantlora import ExportReport


def merge(
    folder: Folder,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the merged model; must be free.")
    ],
    mode: Annotated[
        MergeMode,
        typer.Option(
            metavar="NAME",
            help="`dequantize`: float weights, nothing lost. `requantize`: packed again in the "
            "base's format, which loses some of the update. `exact`: packed, nothing lost, for "
            "QA-LoRA adapters.",
        ),
    ] = MergeMode.DEQUANTIZE,
    dtype: Annotated[
        Dtype,
        typer.Option(metavar="NAME", help="Of the float weights: `auto` is the model's own."),
    ] = Dtype.AUTO,
    check: Annotated[
        bool, typer.Option(help="Load the result again and compare weights and logits.")
    ] = True,
    model: Base = None,
) -> None:
    """Write the merged model: for servers, converters and people who know nothing of adapters.

    The folder appears when everything is written and checked, the tokenizer beside the model.

    **Examples**

    - `quantlora merge my-adapter --output merged --dtype bfloat16`
    - `quantlora merge my-adapter --output merged-4bit --mode requantize`
    """
    from rich.console import Console

    from quantlora_finetune.terminal import quiet_upstream

    console = Console(highlight=False)
    with quiet_upstream():
        import torch

        from quantlora import export_merged, format_size
        from quantlora.errors import FinetuneError
        from quantlora_finetune.trained.trained_model import open_trained

        with console.status(f"loading {folder}"):
            trained = open_trained(folder, model)
        if not trained.folder.has_adapter:
            raise FinetuneError(f"{folder} is a whole model: there is nothing to merge in it.")
        wanted = None if dtype is Dtype.AUTO else getattr(torch, dtype.value)
        tokenizer = trained.tokenizer.tokenizer
        report = export_merged(
            trained.model, output, wanted, mode=mode.value, tokenizer=tokenizer, check=check
        )
    said = f"{report.folder}: {format_size(report.size)} of weights{_checked(report)}."
    console.print(said, soft_wrap=True, markup=False)
    next_command(console, "chat", output)


def _checked(report: ExportReport) -> str:
    found = report.check
    if found is None:
        return ", not loaded again"
    error = max(found.weights.values()) if found.logits is None else found.logits
    what = "weights" if found.logits is None else "outputs"
    return f"; loaded again, its {what} are within {error:.1g} (relative) of the adapter's"
