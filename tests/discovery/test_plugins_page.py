"""``docs/plugins.md`` is true: its reasons are those that users see."""

from __future__ import annotations

import re
from pathlib import Path

import quantlora

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "plugins.md").read_text()


def test_every_reason_of_the_page_is_one_that_a_test_provokes():
    tests = Path(__file__).with_name("test_isolation.py").read_text()
    rows = PAGE.split("| the reason says |")[1].split("\n\n")[0].splitlines()[2:]
    for row in rows:
        reason = row.split("`")[-2]
        fixed = max(re.split(r"\.\.\.|\{|'", reason), key=len).strip()
        assert fixed in tests, f"{reason!r} is in no test"


def test_every_name_of_quantlora_on_the_page_exists():
    names = {*re.findall(r"`quantlora\.([a-z_]+)(?:\(\))?`", PAGE)}
    modules = {name for name in names if (ROOT / f"quantlora/{name}.py").is_file()}
    modules |= {name for name in names if (ROOT / f"quantlora/{name}/__init__.py").is_file()}
    assert names - modules <= {*dir(quantlora)}
    assert "forget_plugins" in names


INSTALL = """
import sys, quantlora
assert "halved" not in quantlora.registry().quantizers
found = quantlora.Requirement("good").check()
sys.path.insert(0, {folder!r})
quantlora.forget_plugins()
print(bool(found), bool(quantlora.Requirement("good").check()))
print("halved" in quantlora.registry().quantizers)
"""


def test_what_is_installed_in_a_running_session_is_found_after_forgetting(run_python):
    folder = str(ROOT / "tests/data/good")
    done = run_python("-c", INSTALL.format(folder=folder))
    assert done.stdout.split() == ["False", "True", "True"]
