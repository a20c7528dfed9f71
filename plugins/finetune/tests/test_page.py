"""docs/finetune.md is true: its example runs, its options and links exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from quantlora_finetune.options.choices import option_infos, option_name
from quantlora_finetune.options.config_file import OPTION
from quantlora_finetune.options.finetune_options import FinetuneOptions
from quantlora_finetune.options.spellings import SAME, SWITCHES

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "finetune.md").read_text()


OTHERS = {
    "--help", "--nproc-per-node", "--multi-gpu", "--num-processes", "--cpu", "--logdir",
    "--install-completion", OPTION,
}  # fmt: skip


def _options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", text))


def test_its_options_exist():
    page, _, rest = re.split(r"\n## (?:The GSM8K recipe|First values)", PAGE)
    known = {option_name(name) for name in option_infos(FinetuneOptions)}
    known |= {f"--{name}" for name in (*SAME, *SWITCHES)}
    found = {option.replace("_", "-") for option in _options(page + rest)}
    assert found - known <= OTHERS


def test_the_recipes_options_exist(monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.syspath_prepend(str(DOCS / "examples"))
    from gsm8k_options import make_parser

    recipe = PAGE.split("## The GSM8K recipe")[1].split("\n## ")[0]
    known = {name for action in make_parser()._actions for name in action.option_strings}
    assert _options(recipe) - known <= {"--model", "--bits", "--rank", "--save-dir"}


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", PAGE))
def test_its_links_lead_somewhere(link):
    assert (DOCS / link).exists()
