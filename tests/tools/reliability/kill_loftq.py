"""`quantlora loftq`, killed, also while it goes on; then run again to its end."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.tools.reliability.commands import import_loftq, invoke, loftq_arguments
from tests.tools.reliability.forks import run, tree
from tests.tools.reliability.kills import kills, whole
from tests.tools.reliability.outcome import Outcome

#: Every so-many-th run goes on in the folder that was killed before, and is killed again.
AGAIN = 3
FINISHED = "holds a finished result already"


def killed_runs(place: Path, count: int, chance: random.Random) -> Iterator[Outcome]:
    """The same command again after each kill: every file is that of the unbroken run."""
    import_loftq()
    arguments = loftq_arguments(place)
    unbroken = whole(lambda: invoke(*arguments, "--save-dir", str(place / "unbroken")))
    source, wanted, out = tree(place / "model"), result(place / "unbroken"), place / "killed"
    numbers = iter(range(count))

    def go_on() -> None:
        invoke(*arguments, "--save-dir", str(out))

    def prepare() -> None:
        unfinished = any(out.glob("*/.parts"))
        if next(numbers) % AGAIN != AGAIN - 1 or not unfinished:
            shutil.rmtree(out, ignore_errors=True)

    for kind in kills(go_on, prepare, count, chance, unbroken):
        kept = shutil.copytree(out, place / "kept") if out.exists() else None
        ended = run(go_on)
        fault = "" if FINISHED in ended.error else ended.error
        if not fault and result(out) != wanted:
            fault = "another result"
        if tree(place / "model") != source:
            fault = "the source has changed"
        yield Outcome(kind, "ended with the same files", fault)
        shutil.rmtree(out, ignore_errors=True)
        if kept:
            kept.rename(out)


def result(folder: Path) -> dict[str, bytes]:
    """All but the report, which has the time in it, and the name of the folder."""
    files = tree(folder).items()
    return {name: data for name, data in files if name.endswith((".safetensors", "/config.json"))}
