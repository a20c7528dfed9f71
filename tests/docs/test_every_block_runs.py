"""Every Python block of the documentation runs: one test for each page (see `pages`)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.given import GIVEN
from tests.docs.pages import PAGES, ROOT, blocks, runnable

#: They quantize by GPTQ, which takes a while.
SLOW = ("plugins/gptq/README.md",)
#: Each of its sections needs another library, and is run by itself: `test_other_homes`.
BY_SECTIONS = "docs/other-homes.md"


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else [])
        for page in PAGES
        if runnable(page) and page != BY_SECTIONS
    ],
)
def test_the_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = dict(GIVEN)
    for block in runnable(page):
        block.run(names)


@pytest.mark.parametrize("page", PAGES)
def test_no_python_hides_by_indentation(page: str) -> None:
    """Python that is indented instead of fenced would not be run."""
    outside = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    assert not re.findall(r"^    (?:import|from) .*", outside, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_every_fence_says_its_language(page: str) -> None:
    assert {block.language for block in blocks(page)} <= {
        "note", "python", "pycon", "bash", "console", "toml", "text", "mermaid", "json", "yaml"
    }  # fmt: skip
