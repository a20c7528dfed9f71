"""docs/finetune.md is true: its example runs, its options and links exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quantlora.finetune.option_fields import option_infos, option_name
from quantlora.finetune.options import FinetuneOptions
from quantlora.testing.models import save_tiny_llama

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "finetune.md").read_text()


def test_its_python_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_tiny_llama("my-model")
    Path("my-texts.jsonl").write_text('{"text": "the quick brown fox. "}\n' * 40)
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, {})
    assert "before" in capsys.readouterr().out


def test_its_options_exist():
    known = {option_name(name) for name in option_infos(FinetuneOptions)}
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE))
    assert used - known <= {"--help", "--nproc-per-node"}


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", PAGE))
def test_its_links_lead_somewhere(link):
    assert (DOCS / link).exists()
