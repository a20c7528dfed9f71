"""docs/adapter-files.md is true where it can be run."""

from __future__ import annotations

import re
from pathlib import Path

from quantlora.checkpoint import place
from quantlora.checkpoint.model_card import CARD

PAGE = (Path(__file__).parents[2] / "docs" / "adapter-files.md").read_text()


def test_its_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "adapter-files.md", "exec"), names)
    files = {path.name for path in (tmp_path / "my-adapter").iterdir()}
    assert files == {CARD, place.CONFIG, place.WEIGHTS, place.SIDE}
    assert all(f"`{name}`" in PAGE for name in files)
