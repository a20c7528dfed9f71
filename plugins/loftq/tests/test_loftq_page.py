"""``docs/loftq.md`` and ``docs/normalfloat.md`` are true: their examples run."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("page", ["loftq.md", "normalfloat.md"])
def test_every_python_example_of_the_page_runs(page):
    pytest.importorskip("bitsandbytes")
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL):
        exec(compile(block, page, "exec"), names)
