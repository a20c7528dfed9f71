"""`python -m tests.compatibility [families ...] [--write]`: try them, show or write the page."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.compatibility.families import families
from tests.compatibility.isolation import import_once, run_each
from tests.compatibility.page import PAGE, page
from tests.compatibility.trial import QUESTIONS, run_trial
from tests.tools.page_command import give, page_parser


def trial(name: str) -> dict[str, Any]:
    return run_trial(name).row()


def shown(rows: Iterator[dict[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    """The same rows, each told as it comes."""
    for index, row in enumerate(rows, 1):
        answers = row.get("died") or "; ".join(dict.fromkeys(row[name] for name in QUESTIONS))
        print(f"{index}/{count} {row['family']}: {answers}", file=sys.stderr, flush=True)
        yield row


def _kept(rows: Path | None) -> list[dict[str, Any]]:
    if rows is None or not rows.exists():
        return []
    return [json.loads(line) for line in rows.read_text().splitlines()]


def main() -> None:
    parser = page_parser("tests.compatibility", __doc__, PAGE)
    parser.add_argument("families", nargs="*", help="default: all")
    parser.add_argument("--rows", type=Path, help="keep rows here, and go on from those there")
    given = parser.parse_args()
    names = given.families or list(families())
    known = {row["family"]: row for row in _kept(given.rows)}
    left = [name for name in names if name not in known]
    import_once()
    for row in shown(run_each(left, trial), len(left)):
        known[row["family"]] = row
        if given.rows:
            with given.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
    text = page(known[name] for name in names)
    give(text, PAGE, given.write)


if __name__ == "__main__":
    main()
