"""What a user waits for before anything is computed: imports, and the report of the machine."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable

from tests.benchmarks.arms import Size
from tests.benchmarks.result import Result
from tests.benchmarks.timing import rounds_of, timing


def imports(size: Size, device: str) -> Result:
    """Of a process of its own, CPU seconds; ``torch`` is under both."""
    result = Result("Import", "ms", "peft")
    lines = {
        "quantlora": "import quantlora",
        "quantlora, first use": "import quantlora; quantlora.wrap",
        "peft": "import peft",
        "torch": "import torch",
    }
    _add(result, "import", {name: ["-c", line] for name, line in lines.items()}, size)
    return result


def env(size: Size, device: str) -> Result:
    """Against torch's own report."""
    result = Result("The report of the machine", "ms", "torch")
    commands = {"quantlora": ["-m", "quantlora.env"], "torch": ["-m", "torch.utils.collect_env"]}
    _add(result, "report", commands, size)
    return result


def _add(result: Result, case: str, commands: dict[str, list[str]], size: Size) -> None:
    spent: dict[str, list[float]] = {name: [] for name in commands}
    calls = {name: _process(arguments, spent[name]) for name, arguments in commands.items()}
    rounds_of(calls, min(2, size.rounds))
    reference = spent[result.reference][1:]
    result.add(case, {name: timing(own[1:], reference) for name, own in spent.items()}, {})


def _process(arguments: list[str], spent: list[float]) -> Callable[[], object]:
    def call() -> None:
        before = _seconds()
        subprocess.run([sys.executable, *arguments], check=False, capture_output=True)
        spent.append(_seconds() - before)

    return call


def _seconds() -> float:
    """CPU seconds of the processes that this one has started and seen end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
