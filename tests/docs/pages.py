"""The Python blocks of the documentation, and how they are run.

A page is run from top to bottom in one namespace and an empty folder. What a block takes as given
stands before it in a comment that readers do not see, and what must hold afterwards behind it:

    <!-- before: model = tiny_llama() -->
    <!-- after: assert quantlora.active_adapters(model) == ["second"] -->

A block under a line ``**`name.py`**`` is a file of a project: it is written into the folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("docs/examples/*/*.md"),
        *ROOT.glob("plugins/*/*.md"),
    ]
)

FENCE = r"```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^```"
FILE = r"\*\*`(?P<file>[\w./]+)`\*\*\n\n"
NOTE = r"^<!-- (?:before|after):\s(?P<note>.*?)\s-->"
PIECE = re.compile(rf"{NOTE}|(?:{FILE})?^{FENCE}", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One piece of a page: code to run, a file's text, or a note for the tests.

    Args:
        page: the page's path in the repository.
        line: where the code begins in it.
        language: that of the fence; ``note`` for a comment.
        file: the name of the file that the block is, if any.
    """

    page: str
    line: int
    language: str
    code: str
    file: str | None = None

    def run(self, names: dict[str, object]) -> None:
        """Execute it, with the page's lines in tracebacks."""
        exec(compile("\n" * self.line + self.code, self.page, "exec"), names)


def blocks(page: str) -> Iterator[Block]:
    """Everything of ``page`` that is fenced or a note, in order."""
    text = (ROOT / page).read_text()
    for found in PIECE.finditer(text):
        group = "code" if found["note"] is None else "note"
        line = text[: found.start(group)].count("\n")
        language = found["language"] or "note"
        yield Block(page, line, language, found[group], found["file"])


def runnable(page: str) -> list[Block]:
    """Its notes and Python blocks, but for those that are files."""
    found = [block for block in blocks(page) if block.language in ("note", "python")]
    return [block for block in found if block.file is None]


def files(page: str) -> dict[str, str]:
    """The files that the page gives, by name."""
    return {block.file: block.code for block in blocks(page) if block.file}
