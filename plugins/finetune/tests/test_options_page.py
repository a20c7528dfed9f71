"""docs/options.md: every option of ours is there, and every spelling of others is answered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from quantlora_finetune.options.aliases import translated
from quantlora_finetune.options.choices import flags, option_name
from quantlora_finetune.options.finetune_options import FinetuneOptions
from quantlora_finetune.options.spellings import ELSEWHERE

from quantlora.errors import ConfigError

PAGE = (Path(__file__).parents[3] / "docs" / "options.md").read_text()
OURS = {option_name(name) for name in FinetuneOptions().as_json()}
#: What nobody else has, or has no name for.
ALONE = {"--reference", "--held-out", "--eval-examples", "--prompt"}


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under ``heading``, without its head."""
    table = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


SAME = rows("The same setting")
SPELLINGS = sorted(
    {name for row in SAME for cell in row[1:] for name in re.findall(r"`(\w+)`", cell)}
    | {
        name
        for row in rows("Without an option, and why")
        for name in re.findall(r"`(\w+)`", row[0])
    }
)


def test_each_option_of_ours_is_in_the_table_and_in_the_help(run):
    there = {re.match(r"`(--[a-z-]+)", row[0])[1] for row in SAME}
    help_text = run("finetune", "--help").output
    assert there | ALONE == OURS
    assert all(name in help_text for name in there)


def answer(spelling: str) -> list[str]:
    """The words that are meant by it, or its error."""
    try:
        return translated([f"--{spelling}", "1"], flags(FinetuneOptions))
    except ConfigError as error:
        return [str(error)]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_spelling_of_others_is_taken_or_answered(spelling):
    words = answer(spelling)
    is_explained = bool(words) and words[0].startswith(f"there is no option --{spelling}: ")
    assert is_explained or not words or words[0].replace("_", "-") in OURS


def test_what_is_answered_is_on_the_page():
    listed = {name.replace("_", "-") for name in SPELLINGS}
    unlisted = set(ELSEWHERE) - listed
    assert len(unlisted) < 30, unlisted
