"""``quantlora check-serving``: which servers compute an adapter right."""

from __future__ import annotations

import json as json_format
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from quantlora import ServingVerdict

_LLAMA_CPP = "llama.cpp"


def check_serving(
    folder: Annotated[Path, typer.Argument(help="An adapter's folder.", metavar="FOLDER")],
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", "-e", help="Judge by this one only; repeatable."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what vLLM, SGLang, llama.cpp, LMDeploy and TensorRT-LLM would do with an adapter.

    Some servers refuse what they do not know, others compute something else without a word. Each
    row says why, and what to type. The exit status is 1 where one of them does not take it.

    **Examples**

    - `quantlora check-serving my-adapter`
    - `quantlora check-serving my-adapter --engine vllm --engine sglang`
    """
    from quantlora import Effect, check_serving as verdicts_of

    verdicts = _chosen(verdicts_of(folder), engine or [])
    if json:
        typer.echo(json_format.dumps([_as_json(each, folder) for each in verdicts], indent=2))
    else:
        from rich.console import Console

        _show(verdicts, folder, Console(highlight=False))
    good = (Effect.NONE, Effect.OPTION)
    raise typer.Exit(0 if all(verdict.effect in good for verdict in verdicts) else 1)


def _chosen(verdicts: list[ServingVerdict], names: list[str]) -> list[ServingVerdict]:
    from quantlora import ConfigError

    by_name = {verdict.engine.lower(): verdict for verdict in verdicts}
    for name in names:
        if name.lower() not in by_name:
            offered = ", ".join(verdict.engine for verdict in verdicts)
            raise ConfigError(f"--engine {name}: choose among {offered}.")
    wanted = [name.lower() for name in names] or list(by_name)
    return [verdict for name, verdict in by_name.items() if name in wanted]


def _what_to_do(verdict: ServingVerdict, folder: Path) -> list[str]:
    """What to type, or to say in Python, so that the engine takes it."""
    from quantlora import Remedy

    remedies = {reason.remedy for reason in verdict.reasons}
    name = shlex.quote(str(folder))
    if Remedy.MERGE in remedies:
        merged = f"quantlora export gguf {name} --merged"
        other = f"quantlora merge {name} --output {shlex.quote(f'{folder}-merged')}"
        return [merged if verdict.engine == _LLAMA_CPP else other]
    found = []
    if Remedy.CONVERT in remedies:
        found.append("save_adapter(model, ..., convert=True)")
    elif Remedy.PORTABLE in remedies:
        found.append("save_adapter(model, ..., portable=True)")
    if verdict.engine == _LLAMA_CPP and not found:
        found.append(f"quantlora export gguf {name}")
    return found


def _as_json(verdict: ServingVerdict, folder: Path) -> dict[str, Any]:
    return {
        "engine": verdict.engine,
        "verdict": verdict.effect.value,
        "reasons": [reason.text for reason in verdict.reasons],
        "do": _what_to_do(verdict, folder),
    }


def _show(verdicts: list[ServingVerdict], folder: Path, console: Console) -> None:
    from rich.table import Table

    from quantlora import Effect

    colors = {Effect.NONE: "green", Effect.OPTION: "green", Effect.UNKNOWN: "yellow"}
    table = Table("engine", "takes it")
    table.add_column("why not", overflow="fold")
    for verdict in verdicts:
        reasons = "; ".join(reason.text for reason in verdict.reasons)
        style = colors.get(verdict.effect, "red")
        table.add_row(verdict.engine, f"[{style}]{verdict.effect.value}[/]", reasons)
    console.print(table)
    for verdict in verdicts:
        for line in _what_to_do(verdict, folder):
            console.print(f"{verdict.engine}: {line}", soft_wrap=True, markup=False)
