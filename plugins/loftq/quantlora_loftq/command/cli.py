"""The command's options. Imports torch inside the function only: ``--help`` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Option = typer.Option


def loftq(
    model: Annotated[str, Option(help="Folder of safetensors, or hub id, of the float model.")],
    save_dir: Annotated[Path, Option(help="Where the result's folder is made.")],
    bits: Annotated[int, Option(help="Bits per weight.")] = 4,
    iterations: Annotated[int, Option("--iter", help="LoftQ rounds.")] = 5,
    rank: Annotated[int, Option(help="Rank of the adapter.")] = 16,
    alpha: Annotated[float | None, Option(help="lora_alpha. Default: twice the rank.")] = None,
    backend: Annotated[str | None, Option(help="Weight format; chosen by the bits.")] = None,
    target_modules: Annotated[
        str, Option(help="Names, with commas between them, or 'all-linear'.")
    ] = "all-linear",
    exclude_modules: Annotated[str | None, Option(help="Names to leave out.")] = None,
    bits_pattern: Annotated[
        list[str] | None, Option(help="PATTERN=BITS for paths that end so; may be repeated.")
    ] = None,
    fake: Annotated[bool, Option("--fake", help="Save the dequantized weights, dense.")] = False,
    method: Annotated[str, Option(help="'krylov', or 'exact' for full SVDs.")] = "krylov",
    seed: Annotated[int, Option(help="Of the low-rank step.")] = 0,
    threads: Annotated[int, Option(help="Per process. Results depend on it in last bits.")] = 1,
    device: Annotated[str, Option(help="Where to compute, e.g. 'cuda'.")] = "cpu",
    max_shard_size: Annotated[str, Option(help="Size of the output's files.")] = "5GB",
) -> None:
    """Quantize a model with LoftQ and save it, with its adapter in `loftq_init/`.

    Works layer by layer from the files; a run that was killed goes on where it stopped. Under
    `torchrun --no-python --nproc-per-node N quantlora loftq ...` the processes share the layers.
    """
    from quantlora_loftq.command.recipe import Recipe, parse_patterns
    from quantlora_loftq.command.run import run

    targets = target_modules if target_modules == "all-linear" else target_modules.split(",")
    recipe = Recipe(
        model=model,
        bits=bits,
        iterations=iterations,
        rank=rank,
        alpha=2 * rank if alpha is None else alpha,
        backend=backend,
        target_modules=targets,
        exclude_modules=exclude_modules.split(",") if exclude_modules else None,
        bits_pattern=parse_patterns(bits_pattern or []),
        fake=fake,
        method=method,
        seed=seed,
        threads=threads,
        device=device,
    )
    typer.echo(run(recipe, save_dir, max_shard_size))
