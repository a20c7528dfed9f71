"""The same seed twice: the same adapter, bit for bit, or the difference is shown."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import quantlora
from tests.tools.reliability import commands
from tests.tools.reliability.forks import Child, run
from tests.tools.reliability.kill_finetune import result as adapter_of
from tests.tools.reliability.kill_loftq import result as model_of
from tests.tools.reliability.outcome import Outcome
from tests.tools.reliability.subjects import adapter_values, formats, plain, same

#: Below this many attempts there is no time for runs with Python and torch started anew.
_ENOUGH = 20


def determinism(place: Path, count: int, chance: random.Random) -> Iterator[Outcome]:
    """In the same number of threads the bits are the same; for other numbers see the page."""
    commands.import_finetune()
    commands.import_loftq()
    share = max(2, count // 3)
    yield from _again("finetune again", lambda out: _finetune(place, out), place, share)
    yield from _again("loftq again", lambda out: _loftq(place, out), place, share)
    yield from _wraps(chance, share)
    yield from _loftq_of_two(place)
    if count >= _ENOUGH:
        yield from _otherwise(place)


def _finetune(place: Path, out: Path) -> object:
    arguments = commands.finetune_arguments(place / "sources")
    commands.invoke(*arguments, "--output", str(out))
    return adapter_of(out)


def _loftq(place: Path, out: Path) -> object:
    commands.invoke(*commands.loftq_arguments(place / "sources"), "--save-dir", str(out))
    return model_of(out)


def _again(case: str, make: Callable[[Path], object], place: Path, count: int) -> Iterator[Outcome]:
    """In a process of its own each time."""
    first = run(lambda: make(place / f"{case} first"))
    for number in range(count):
        ended = run(lambda number=number: make(place / f"{case} {number}"))
        fault = ended.error or first.error
        yield _outcome(case, fault or ended.value == first.value)


def _outcome(case: str, right: bool | str) -> Outcome:
    fault = right if isinstance(right, str) else "" if right else "other bits"
    return Outcome(case, "the same bits", fault)


def _wraps(chance: random.Random, count: int) -> Iterator[Outcome]:
    """First values of A, from torch's seed, in every format."""
    import torch

    for number in range(count):
        name, seed = formats()[number % len(formats())], chance.getrandbits(32)
        models = []
        for _ in range(2):
            model = plain()
            torch.manual_seed(seed)
            models.append(quantlora.wrap(model, backend=name, r=4))
        one, other = (adapter_values(model) for model in models)
        yield _outcome(f"wrap again, {name}", same(one, other))


def _loftq_of_two(place: Path) -> Iterator[Outcome]:
    """Two processes, as torchrun starts them, against one."""
    alone = run(lambda: _loftq(place, place / "alone"))

    def one_of_two(rank: int) -> object:
        os.environ.update(RANK=str(rank), WORLD_SIZE="2")
        return commands.invoke(*arguments, "--save-dir", str(place / "shared"))

    arguments = commands.loftq_arguments(place / "sources")
    ended = [child.wait() for child in [Child(lambda rank=r: one_of_two(rank)) for r in (0, 1)]]
    error = alone.error or "".join(one.error for one in ended)
    yield _outcome(
        "loftq, two processes against one", error or model_of(place / "shared") == alone.value
    )


def _otherwise(place: Path) -> Iterator[Outcome]:
    """Measured, not promised: sums in another order have other last bits."""
    wanted = run(lambda: _finetune(place, place / "one thread")).value
    arguments = commands.finetune_arguments(place / "sources")
    ways = {
        "finetune, one thread, Python started anew": ([], "1"),
        "finetune, two threads against one": ([], "2"),
        "finetune, two processes against one": (
            ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"], "1",
        ),
    }  # fmt: skip
    for index, (case, (launcher, threads)) in enumerate(ways.items()):
        out = place / f"other {index}"
        size = ["--batch-size", "1"] if launcher else []
        program = ["-m", "quantlora", *arguments, *size, "--output", str(out)]
        python = [sys.executable, *launcher, sys.executable] if launcher else [sys.executable]
        done = subprocess.run(
            [*python, *program], capture_output=True, env={**os.environ, "OMP_NUM_THREADS": threads}
        )
        if done.returncode:
            yield Outcome(case, "", f"exit {done.returncode}: {done.stderr[-300:]!r}")
            continue
        end = "the same bits" if adapter_of(out) == wanted else "other last bits"
        yield Outcome(case, end, "" if index or end == "the same bits" else end)
