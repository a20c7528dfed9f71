"""The whole run: share the layers, work on them, put the result together."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from quantlora import ConfigError, Quantizer
from quantlora_loftq.command.assemble import assemble, checkpoint_config, shard_bytes
from quantlora_loftq.command.layer_work import check_source, work_on
from quantlora_loftq.command.parts import Parts
from quantlora_loftq.command.recipe import Recipe
from quantlora_loftq.command.source import LayerPlan, Source


def run(recipe: Recipe, save_dir: Path, max_shard_size: str = "5GB") -> Path:
    """Quantize the recipe's model into a folder of ``save_dir``; returns the folder.

    Under torchrun each process takes every ``WORLD_SIZE``-th layer, and the first one puts the
    result together. Each layer has its own seed, and each process the same number of threads,
    so the result is the same for any number of them.
    """
    shard_bytes(max_shard_size)
    quantizer = recipe.quantizer()
    out = save_dir / recipe.name
    _check_free(out)
    rank, world = (int(os.environ.get(name, d)) for name, d in (("RANK", 0), ("WORLD_SIZE", 1)))
    with _threads(recipe.threads), _explained(out):
        source = Source(recipe)
        config = checkpoint_config(source, quantizer)
        parts = Parts(out, recipe.text)
        _work(source, quantizer, parts, source.layers[rank::world], show=rank == 0)
        if rank == 0:
            _wait(parts, source.layers)
            assemble(source, config, parts, out, max_shard_size)
            parts.remove()
    return out


def _check_free(out: Path) -> None:
    if (out / "config.json").exists() and not (out / ".parts").exists():
        raise ConfigError(f"{out} holds a finished result already; remove it, or save elsewhere.")


def _work(
    source: Source, quantizer: Quantizer, parts: Parts, plans: list[LayerPlan], show: bool
) -> None:
    from rich.console import Console
    from rich.progress import track

    todo = [plan for plan in plans if not parts.done(plan.path)]
    for plan in plans:
        if parts.done(plan.path):
            check_source(plan, source, parts)
    console = Console(stderr=True)
    for plan in track(todo, "LoftQ", console=console, disable=not show, show_speed=False):
        work_on(plan, source, quantizer, parts)


def _wait(parts: Parts, plans: list[LayerPlan]) -> None:
    """Until the other processes are through; torchrun ends all of them if one fails."""
    while not all(parts.done(plan.path) for plan in plans):
        time.sleep(0.2)


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    """What the disk refuses within the block, with what to do."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written to: {error.strerror or error}. Make room, or save elsewhere; "
            f"the same command goes on where this run stopped."
        ) from error


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
