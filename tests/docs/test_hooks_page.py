"""``docs/hooks.md``: the example of each hook installs, runs, and prints what the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from quantlora.hookspecs import HOOKS
from tests.docs.installed import install
from tests.docs.pages import Block, blocks

PAGE = "docs/hooks.md"
TEXT = (Path(__file__).parents[2] / PAGE).read_text()
STARTS = {hook: TEXT[: TEXT.index(f"### `{hook}`")].count("\n") for hook in HOOKS}
CLI = ["-c", "from quantlora.cli import app; app()"]


def section(hook: str) -> list[Block]:
    """The fenced blocks from this hook's heading to the next one."""
    ends = [start for start in STARTS.values() if start > STARTS[hook]]
    end = min(ends, default=len(TEXT))
    return [block for block in blocks(PAGE) if STARTS[hook] < block.line < end]


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("hook", HOOKS)
def test_the_example_prints_what_the_page_says(hook, run_python, tmp_path, monkeypatch) -> None:
    found = section(hook)
    files = {block.file: block.code for block in found if block.file}
    assert f"def {hook}()" in files["my_plugin.py"]
    install(tmp_path, files, "my-plugin", {"my-plugin": "my_plugin"})
    monkeypatch.chdir(tmp_path)
    (command,) = (block.code for block in found if block.language == "bash")
    (expected,) = (block.code for block in found if block.language == "text")
    program, *arguments = shlex.split(command)
    output = run_python(
        *(CLI if program == "quantlora" else []), *arguments, path=[tmp_path]
    ).stdout
    for line in expected.splitlines():
        assert plain(line) in plain(output)


@pytest.mark.slow
def test_the_suite_passes_on_the_initializer_of_the_page(run_python, tmp_path) -> None:
    files = {block.file: block.code for block in section("quantlora_initializers") if block.file}
    install(tmp_path, files, "my-plugin", {"my-plugin": "my_plugin"})
    test = str(tmp_path / "test_my_initializer.py")
    done = run_python("-m", "pytest", "-q", test, path=[tmp_path], check=False)
    assert done.returncode == 0, done.stdout[-3000:]
