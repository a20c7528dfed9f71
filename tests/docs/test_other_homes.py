"""``docs/other-homes.md``: each section by itself, where its libraries are installed."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.given import GIVEN
from tests.docs.pages import ROOT, Block, runnable

PAGE = "docs/other-homes.md"
LINES = (ROOT / PAGE).read_text().splitlines()
#: Line of each heading, by its text.
HEADINGS = {line[3:]: number for number, line in enumerate(LINES) if line.startswith("## ")}
SECTIONS = [name for name in HEADINGS if name != "What was run"]


def blocks_of(section: str) -> Iterator[Block]:
    begin = HEADINGS[section]
    end = min((n for n in HEADINGS.values() if n > begin), default=len(LINES))
    yield from (block for block in runnable(PAGE) if begin <= block.line < end)


def needed(section: str) -> list[str]:
    (names,) = re.findall(r"<!-- needs: (.*?) -->", "\n".join(LINES[HEADINGS[section] :]))[:1]
    return names.split(", ")


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_the_section_runs(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = [name for name in needed(section) if importlib.util.find_spec(name) is None]
    if absent:
        pytest.skip(f"{', '.join(absent)} is not installed")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = dict(GIVEN)
    for block in blocks_of(section):
        block.run(names)


@pytest.mark.parametrize("section", SECTIONS)
def test_the_table_says_whether_the_section_was_run(section: str) -> None:
    table = "\n".join(LINES[HEADINGS["What was run"] :])
    assert f"| [{section}](#" in table
