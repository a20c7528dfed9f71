"""What the commands that write a page of docs/ have in common: ``--write``, else it is shown."""

from __future__ import annotations

import argparse
from pathlib import Path


def page_parser(module: str, description: str | None, page: Path) -> argparse.ArgumentParser:
    """The parser of ``python -m <module>``, with the option ``--write``."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--write", action="store_true", help=f"write {page.name}")
    return parser


def give(text: str, page: Path, write: bool) -> None:
    """Write ``text`` to ``page``, or show it."""
    if write:
        page.write_text(text, "utf-8")
    else:
        print(text)
