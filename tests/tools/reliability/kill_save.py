"""`save_adapter` over another adapter, killed: the folder holds the one or the other, whole."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from torch import nn

import quantlora
from quantlora.checkpoint.location import CONFIG, SIDE, WEIGHTS
from quantlora.checkpoint.model_card import CARD
from quantlora.checkpoint.read import read_adapter
from tests.files import killed_at_each_line
from tests.tools.reliability.forks import run
from tests.tools.reliability.kills import kills, whole
from tests.tools.reliability.outcome import Outcome
from tests.tools.reliability.subjects import wrapped

LINE = "before a line of the save"
#: Names of the two adapters, by rank, as the outcomes have them.
ENDS = {2: "the old adapter", 4: "the new adapter"}
MIXTURE = "a mixture of two adapters"
#: Saves of others that may come between reading an adapter and reading its card.
ATTEMPTS = 20


def killed_saves(place: Path, count: int, chance: random.Random) -> Iterator[Outcome]:
    """Kills of a real save, and of one of three small files before each line of its code."""
    lines = min(count // 2, 1000)
    yield from _of_adapters(place / "adapter", count - lines, chance)
    yield from _at_lines(place / "set", lines)


def _of_adapters(folder: Path, count: int, chance: random.Random) -> Iterator[Outcome]:
    models = {r: wrapped(r=r) for r in ENDS}

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        quantlora.save_adapter(models[2], folder)
        (folder / "optimizer.pt").write_text("kept")

    def save() -> None:
        quantlora.save_adapter(models[4], folder)

    prepare()
    unbroken = whole(save)
    for kind in kills(save, prepare, count, chance, unbroken):
        end, fault = found(folder, models)
        yield Outcome(kind, end, fault or _not_recovered(folder, models))


def found(folder: Path, models: dict[int, nn.Module]) -> tuple[str, str]:
    """Which of ``models`` is in ``folder``, or what is wrong with what is there.

    The card is read by itself: where others save meanwhile, what differs once is no mixture yet.
    """
    for _ in range(ATTEMPTS):
        end, fault = _found(folder, models)
        if fault != MIXTURE:
            break
    return end, fault


def _found(folder: Path, models: dict[int, nn.Module]) -> tuple[str, str]:
    try:
        saved = read_adapter(folder)
    except quantlora.QuantloraError as error:
        return "nothing", str(error)
    r = saved.config.r
    wanted = {
        f"base_model.model.{path}.{name}": tensor
        for path, layer in quantlora.lora_layers(models[r])
        for name, tensor in layer.adapter_tensors("default").items()
    }
    whole = wanted.keys() == saved.tensors.keys() and all(
        saved.tensors[key].equal(tensor) for key, tensor in wanted.items()
    )
    whole = whole and f": rank {r}," in (folder / CARD).read_text()
    return ENDS[r], "" if whole else MIXTURE


def _not_recovered(folder: Path, models: dict[int, nn.Module]) -> str:
    """The next save must go through, and leave no litter and nothing else lost."""
    ended = run(lambda: quantlora.save_adapter(models[4], folder))
    names = {path.name for path in (*folder.iterdir(), *folder.parent.glob(".*"))}
    wanted = {CONFIG, WEIGHTS, SIDE, CARD, "optimizer.pt"}
    return ended.error or ("" if names == wanted else f"left over or lost: {names ^ wanted}")


def _at_lines(folder: Path, count: int) -> Iterator[Outcome]:
    """Before each line in turn; where there are more lines than attempts, evenly spread."""
    total = _lines(folder)
    for line in sorted({1 + number * total // max(1, count) for number in range(count)}):
        shutil.rmtree(folder, ignore_errors=True)
        killed_at_each_line.prepare(folder)
        killed_at_each_line.killed(folder, line)
        end = killed_at_each_line.state(folder)
        good = end in ("old", "new") and killed_at_each_line.kept(folder)
        yield Outcome(LINE, f"the {end} adapter", "" if good else f"left: {end}")


def _lines(folder: Path) -> int:
    """How many lines of the code a save runs."""
    low, high = 1, 4096
    while low < high:
        killed_at_each_line.prepare(folder)
        middle = (low + high) // 2
        if killed_at_each_line.killed(folder, middle):
            low = middle + 1
        else:
            high = middle
    return low - 1
