"""``docs/plugins.md`` is true: its reasons are those that users see."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()


def test_every_reason_of_the_page_is_one_that_a_test_provokes():
    tests = Path(__file__).with_name("test_isolation.py").read_text()
    rows = PAGE.split("| the reason says |")[1].split("\n\n")[0].splitlines()[2:]
    for row in rows:
        reason = row.split("`")[-2]
        fixed = max(re.split(r"\.\.\.|\{|'", reason), key=len).strip()
        assert fixed in tests, f"{reason!r} is in no test"
