"""``quantlora export``: what was trained, as other programs' files."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from quantlora_gguf.export.exported import Exported, Shown
    from quantlora_gguf.export.gguf_output import Output


class Format(str, Enum):
    """What is written."""

    GGUF = "gguf"


class FileType(str, Enum):
    """llama.cpp's types that can be written."""

    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    Q8_0 = "Q8_0"
    Q5_1 = "Q5_1"
    Q5_0 = "Q5_0"
    Q4_1 = "Q4_1"
    Q4_0 = "Q4_0"


def export(
    format: Annotated[Format, typer.Argument(help="`gguf`, of llama.cpp and Ollama.")],
    folder: Annotated[
        Path,
        typer.Argument(
            help="An adapter's folder, as `quantlora finetune` and PEFT write it, or a model's.",
            metavar="FOLDER",
        ),
    ],
    merged: Annotated[
        bool, typer.Option("--merged", help="One file of base and adapter, instead of the adapter.")
    ] = False,
    type: Annotated[
        FileType | None,
        typer.Option(
            case_sensitive=False,
            metavar="TYPE",
            help="Of the matrices: F32, F16, BF16, Q8_0, Q5_1, Q5_0, Q4_1 or Q4_0. Default: F32 of "
            "an adapter, F16 of a model.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to write; must be free. Default: FOLDER-gguf."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="The adapter's base, where it is another than its files say."
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A GGUF file of the base: an adapter is checked against it; a model gets its "
            "metadata and tokenizer.",
        ),
    ] = None,
) -> None:
    """Write a GGUF file of what was trained, and Ollama's Modelfile, without llama.cpp.

    Scales are multiplied into the adapter, so that rsLoRA and patterns of alpha are right, which
    llama.cpp reads none of. What the file has no room for (DoRA, modules trained in full, ...) is
    refused by name; **--merged** takes it.

    **Examples**

    - `quantlora export gguf my-adapter --base model-Q4_K_M.gguf`
    - `quantlora export gguf my-adapter --merged --type Q8_0`
    - `quantlora export gguf merged-model --output served`
    """
    from rich.console import Console

    from quantlora_gguf.requires import GGUF

    console = Console(highlight=False)
    GGUF.check().require()
    target = output or folder.resolve().with_name(f"{folder.resolve().name}-gguf")
    arguments = (folder, target.absolute(), model, base)
    _check(folder, base)
    whole = merged or not (folder / "adapter_config.json").is_file()
    _report(_export(whole, arguments, type, Console(stderr=True, highlight=False)), console)


def _check(folder: Path, base: Path | None) -> None:
    from quantlora import ConfigError
    from quantlora_gguf.export.base_names import is_gguf

    names = ("adapter_config.json", "config.json")
    if not any((folder / name).is_file() for name in names):
        what = "has neither" if folder.is_dir() else "is no folder with"
        raise ConfigError(
            f"{folder} {what} an adapter (adapter_config.json) or a model (config.json) in it: "
            f"name the --output of `quantlora finetune` or `quantlora merge`."
        )
    if base is not None and not is_gguf(base):
        raise ConfigError(f"--base {base}: there is no such GGUF file.")


def _export(
    whole: bool,
    arguments: tuple[Path, Path, str | None, Path | None],
    type: FileType | None,
    progress: Console,
) -> Exported:
    from transformers.utils import logging

    from quantlora_gguf.export.exported import export_adapter, export_model

    hide: Any = logging.disable_progress_bar  # untyped upstream
    hide()
    if whole:
        return export_model(*arguments, (type or FileType.F16).value, _shown(progress))
    return export_adapter(*arguments, (type or FileType.F32).value, _shown(progress))


def _shown(console: Console) -> Shown:
    from rich.progress import track

    def shown(outputs: Iterable[Output]) -> Iterable[Output]:
        return track(
            list(outputs), "writing", console=console, disable=not console.is_terminal,
            transient=True,
        )  # fmt: skip

    return shown


def _report(found: Exported, console: Console) -> None:
    from rich.text import Text

    from quantlora import format_size

    rank = f" of rank {found.rank}, every scale in B" if found.rank is not None else ""
    size = format_size(found.nbytes)
    modelfile = found.file.with_name("Modelfile")
    console.print(f"{found.file}: {found.tensors} tensors{rank}, {size}.", soft_wrap=True)
    console.print(f"{modelfile}: for Ollama.", soft_wrap=True)
    model, adapter = (
        (found.file, []) if found.model is None else (found.model, ["--lora", found.file])
    )
    template = ["--jinja", "--chat-template-file", found.template] if found.template else []
    llama = ["llama-cli", "-m", model or "BASE.gguf", *adapter, *template]
    ollama = ["ollama", "create", "my-model", "-f", modelfile]
    for line, words in (("Next", llama), ("  or", ollama)):
        command = shlex.join(map(str, words))
        console.print(Text.assemble(f"{line}: ", (command, "bold")), soft_wrap=True)
