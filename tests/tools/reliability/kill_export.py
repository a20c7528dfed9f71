"""`export_merged`, killed: there is no folder, or a whole one."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import quantlora
from quantlora.testing import models
from tests.tools.reliability.forks import run, tree
from tests.tools.reliability.kills import kills, whole
from tests.tools.reliability.outcome import Outcome
from tests.tools.reliability.subjects import with_values


def killed_exports(place: Path, count: int, chance: random.Random) -> Iterator[Outcome]:
    """After each kill, the next export goes through, with the bits of the unbroken one."""
    model = with_values(quantlora.wrap(models.tiny_llama(), r=4), 1)
    unbroken = whole(lambda: quantlora.export_merged(model, place / "unbroken"))
    wanted, out = tree(place / "unbroken"), place / "out" / "export"

    def export() -> None:
        quantlora.export_merged(model, out, max_shard_size=100_000)

    def prepare() -> None:
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()

    shutil.rmtree(place / "unbroken")
    prepare()
    unbroken = whole(export)
    wanted = tree(out)
    for kind in kills(export, prepare, count, chance, unbroken):
        there = out.exists()
        fault = "" if not there or tree(out) == wanted else "an incomplete export"
        shutil.rmtree(out, ignore_errors=True)
        fault = fault or run(export).error
        if not fault and (tree(out) != wanted or [*out.parent.iterdir()] != [out]):
            fault = "the next export differs, or litter is left"
        yield Outcome(kind, "a whole export" if there else "no export", fault)
