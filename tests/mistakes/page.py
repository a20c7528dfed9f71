"""docs/mistakes.md: every mistake with what is printed, as this machine prints it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import quantlora
from tests.mistakes.cases import COMMANDS, SNIPPETS, prepare
from tests.tools.typed_commands import inside, plain, typed

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


def called(code: str, folder: Path) -> str:
    """``code`` in a session of Python, and the last line of its traceback."""
    from transformers import AutoModelForCausalLM

    with inside(folder):
        model = AutoModelForCausalLM.from_pretrained("my-model")
        try:
            exec(code, {"quantlora": quantlora, "model": model})
        except quantlora.QuantloraError as error:
            said = plain(f"{type(error).__name__}: {error}", folder)
            return f"```pycon\n>>> {code}\nquantlora.errors.{said}\n```\n"
    raise AssertionError(f"nothing is wrong with {code}")


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
