"""docs/mistakes.md: every mistake with what is printed, as this machine prints it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from typer.testing import CliRunner

import quantlora
from quantlora.cli import app
from tests.mistakes.cases import COMMANDS, SNIPPETS, prepare

PAGE = Path(__file__).parents[2] / "docs" / "mistakes.md"
HEAD = """# Mistakes

What is printed after plausible mistakes. A mistake at the command line ends in a message and exit
status 1, or 2 where the options cannot be; in Python it is an exception of `quantlora.errors`. The
page is written by `python -m tests.mistakes --write`, and
[a test](../tests/mistakes/test_mistakes_page.py) makes every mistake again and compares the whole
text. [Errors](errors.md) has all messages.

The working directory holds a small model `my-model`, another one `larger-model`, the adapters
`my-adapter` (of `my-model`) and `orphan` (of a model that is gone), an empty folder `notes`, and
files of data.
"""
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


def typed(line: str, folder: Path) -> str:
    """``line`` as it is typed, what is printed, and the exit status."""
    with inside(folder):
        done = CliRunner().invoke(app, shlex.split(line), env=_ENVIRONMENT)
    said = _plain(done.output, folder)
    return f"```console\n$ quantlora {line}\n{said}\n$ echo $?\n{done.exit_code}\n```\n"


def called(code: str, folder: Path) -> str:
    """``code`` in a session of Python, and the last line of its traceback."""
    from transformers import AutoModelForCausalLM

    with inside(folder):
        model = AutoModelForCausalLM.from_pretrained("my-model")
        try:
            exec(code, {"quantlora": quantlora, "model": model})
        except quantlora.QuantloraError as error:
            said = _plain(f"{type(error).__name__}: {error}", folder)
            return f"```pycon\n>>> {code}\nquantlora.errors.{said}\n```\n"
    raise AssertionError(f"nothing is wrong with {code}")


def _plain(text: str, folder: Path) -> str:
    """Without what differs by machine: the working directory, spaces at the ends of lines."""
    text = text.replace(str(folder.resolve()), "/home/me").replace(str(folder), "/home/me")
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).strip()


def sections(folder: Path) -> Iterator[str]:
    """The parts of the page in order; ``folder`` is empty and becomes the working directory."""
    with inside(folder):
        prepare(folder)
    yield HEAD
    yield from _part("At the command line", COMMANDS, typed, folder)
    yield from _part("In Python", SNIPPETS, called, folder)


def _part(
    title: str, cases: dict[str, str], shown: Callable[[str, Path], str], folder: Path
) -> Iterator[str]:
    yield f"## {title}\n"
    for name, line in cases.items():
        yield section(name, shown(line, folder))


def section(name: str, shown: str) -> str:
    return f"### {name}\n\n{shown}"
