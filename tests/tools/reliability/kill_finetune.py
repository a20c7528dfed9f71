"""`quantlora finetune`, killed, also while it resumes; then resumed to its end."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.tools.reliability.commands import finetune_arguments, import_finetune, invoke
from tests.tools.reliability.forks import run
from tests.tools.reliability.kills import kills, whole
from tests.tools.reliability.outcome import Outcome

#: Every so-many-th run goes on in the folder that was killed before, and is killed again.
AGAIN = 3


def killed_runs(place: Path, count: int, chance: random.Random) -> Iterator[Outcome]:
    """Every kill is followed by ``--resume``: the adapter has the bits of the unbroken run's."""
    import_finetune()
    arguments = finetune_arguments(place)
    unbroken = whole(lambda: invoke(*arguments, "--output", str(place / "unbroken")))
    wanted, folder = result(place / "unbroken"), place / "killed"
    numbers = iter(range(count))

    def prepare() -> None:
        if next(numbers) % AGAIN != AGAIN - 1 or (folder / "report.json").exists():
            shutil.rmtree(folder, ignore_errors=True)

    for kind in kills(lambda: go_on(folder, arguments), prepare, count, chance, unbroken):
        kept = shutil.copytree(folder, place / "kept") if folder.exists() else None
        ended = run(lambda: go_on(folder, arguments))
        yield judged(kind, folder, wanted, ended.error)
        shutil.rmtree(folder, ignore_errors=True)
        if kept:
            kept.rename(folder)


def go_on(folder: Path, arguments: list[str]) -> None:
    """As a user would: ``--resume`` where a run has begun, else the same command again."""
    begun = (folder / "run.json").is_file()
    invoke(*(["finetune", "--resume"] if begun else arguments), "--output", str(folder))


def result(folder: Path) -> tuple[bytes, list[float]]:
    report = json.loads((folder / "report.json").read_text())
    losses = [one["loss"] for one in report["training"]["steps"]]
    return (folder / "adapter_model.safetensors").read_bytes(), losses


def judged(kind: str, folder: Path, wanted: tuple[bytes, list[float]], error: str) -> Outcome:
    if error:
        return Outcome(kind, "could not be resumed", error)
    same = result(folder) == wanted
    return Outcome(kind, "resumed to the same bits", "" if same else "another adapter")
