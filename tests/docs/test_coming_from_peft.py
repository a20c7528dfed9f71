"""The page for users of PEFT: its left column with the import changed, and what it counts."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.docs.given import GIVEN
from tests.docs.pages import ROOT, blocks, runnable

PAGE = "docs/coming-from-peft.md"
IMPORT = re.compile(r"^(from|import) peft\b", re.MULTILINE)


@pytest.mark.slow
def test_the_left_column_runs_with_the_import_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = dict(GIVEN)
    for block in runnable(PAGE):
        replace(block, code=IMPORT.sub(r"\1 quantlora.peft", block.code)).run(names)


def test_the_page_counts_the_lines_that_change() -> None:
    text = (ROOT / PAGE).read_text()
    column = re.findall(r'```python title="PEFT"\n(.*?)```', text, re.DOTALL)
    lines = [line for code in column for line in code.splitlines() if line.strip()]
    changed = [line for line in lines if IMPORT.match(line)]
    assert len(column) == 20
    assert f"| of the twenty snippets | {len(lines)} |" in text
    assert f"each changed to `quantlora.peft` | {len(changed)} |" in text
    assert f"[{len(changed)} of {len(lines)} lines](#lines-that-change)" in text


def test_every_task_stands_there_twice() -> None:
    titles = re.findall(r'```python title="(\w+)"', (ROOT / PAGE).read_text())
    assert titles[: 2 * 20] == ["PEFT", "quantlora"] * 20
    assert sum(block.language == "python" for block in blocks(PAGE)) == len(titles)
