"""Each family in a process of its own: a crash or an endless run is a hole, not the end."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

#: Seconds for one family.
PATIENCE = 240


def import_once() -> None:
    """What every family needs, before the processes are forked."""
    import peft  # noqa: F401
    import torch
    from transformers import LlamaForCausalLM  # noqa: F401

    import quantlora

    torch.set_num_threads(1)
    quantlora.registry()


def run_each(
    names: Iterable[str], trial: Callable[[str], dict[str, Any]], patience: float = PATIENCE
) -> Iterator[dict[str, Any]]:
    """The row of each name, in their order."""
    for name in names:
        yield run_forked(name, trial, patience)


def run_forked(
    name: str, trial: Callable[[str], dict[str, Any]], patience: float = PATIENCE
) -> dict[str, Any]:
    """``trial(name)`` in a forked process; where it dies, a row with how."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        os.close(reading)
        _child(name, trial, writing)
    os.close(writing)
    text = _read(reading, process, patience)
    _, status = os.waitpid(process, 0)
    if text:
        row: dict[str, Any] = json.loads(text)
        return row
    return {"family": name, "died": _death(status, patience)}


def _child(name: str, trial: Callable[[str], dict[str, Any]], writing: int) -> None:
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        row = trial(name)
        with os.fdopen(writing, "w") as pipe:
            json.dump(row, pipe)
    finally:
        os._exit(0)


def _read(reading: int, process: int, patience: float) -> str:
    """All that the child writes; it is killed when it has written nothing for ``patience``."""
    with os.fdopen(reading) as pipe:
        if not select.select([pipe], [], [], patience)[0]:
            os.kill(process, signal.SIGKILL)
        return pipe.read()


def _death(status: int, patience: float) -> str:
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return f"no answer within {patience:.0f} s"
    if os.WIFSIGNALED(status):
        return f"the process ended with signal {os.WTERMSIG(status)}"
    return "the process ended without an answer"
