"""Commands as they are typed, run in this process, with what they print."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from typer.testing import CliRunner

from quantlora.cli import app

_ENVIRONMENT = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "HF_HUB_OFFLINE": "1"}


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """``folder`` is the working directory within the block."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def typed(line: str, folder: Path, answers: Sequence[str] = ()) -> str:
    """``line`` as it is typed, what is printed, and the exit status where it is not 0.

    Args:
        answers: what is typed at the prompts of the command, ``> ``.
    """
    with inside(folder):
        given = "".join(f"{answer}\n" for answer in answers)
        done = CliRunner().invoke(app, shlex.split(line), input=given, env=_ENVIRONMENT)
    said = plain(_echoed(done.output, answers), folder)
    status = f"$ echo $?\n{done.exit_code}\n" if done.exit_code else ""
    return f"```console\n$ quantlora {line}\n{said}\n{status}```\n"


def _echoed(output: str, answers: Sequence[str]) -> str:
    """With the answers behind their prompts, where a terminal shows them."""
    if not answers:
        return output
    rest = iter(answers)
    return re.sub(r"^> ", lambda prompt: f"{prompt[0]}{next(rest)}\n", output, flags=re.MULTILINE)


def plain(text: str, folder: Path) -> str:
    """Without what differs by machine: the working directory, spaces at the ends of lines."""
    text = text.replace(str(folder.resolve()), "/home/me").replace(str(folder), "/home/me")
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).strip()
