"""All that writes results: what they write, how they are told to, and how to compare it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import quantlora
from quantlora.testing.models import tiny_llama
from tests.tools.reliability import commands, kill_finetune, kill_loftq
from tests.tools.reliability.forks import tree
from tests.tools.reliability.subjects import with_values, wrapped


@dataclass(frozen=True)
class Writer:
    """One of them.

    Args:
        write: puts the result into a folder; again after a failure, it goes on or starts anew.
        result: what counts of it, to be compared.
        over: puts something there before that must not be lost.
    """

    name: str
    write: Callable[[Path], object]
    result: Callable[[Path], object]
    over: Callable[[Path], object] = lambda folder: None


def all_writers(place: Path) -> list[Writer]:
    """``save_adapter`` over another adapter, ``export_merged``, ``loftq`` and ``finetune``."""
    commands.import_finetune()
    commands.import_loftq()
    old, new = wrapped(r=2), wrapped(r=64)
    llama = with_values(quantlora.wrap(tiny_llama(), r=4), 1)
    finetune = commands.finetune_arguments(place / "finetune")
    loftq = commands.loftq_arguments(place / "loftq")
    return [
        Writer(
            "save_adapter",
            lambda folder: quantlora.save_adapter(new, folder),
            tree,
            lambda folder: quantlora.save_adapter(old, folder),
        ),
        Writer("export_merged", lambda folder: quantlora.export_merged(llama, folder), tree),
        Writer(
            "loftq",
            lambda folder: commands.invoke(*loftq, "--save-dir", str(folder)),
            kill_loftq.result,
        ),
        Writer(
            "finetune",
            lambda folder: kill_finetune.go_on(folder, finetune),
            kill_finetune.result,
        ),
    ]
