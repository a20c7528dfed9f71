"""What all commands do with options: slips, completion, colors."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from quantlora.cli import app


def run(*arguments: str, **environment: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80", **environment})
    return " ".join(re.sub("[│╭╰─╮╯]", " ", result.output).split())


@pytest.mark.parametrize(
    ("typed", "meant"), [("--lenght", "--length"), ("--batchsize", "--batch-size")]
)
def test_a_slip_is_answered_by_the_option_that_was_meant(typed: str, meant: str) -> None:
    assert meant in run("finetune", typed, "3").partition("No such option")[2]


@pytest.mark.parametrize("typed", ["--banana", "--backpack", "--attention"])
def test_an_unknown_option_is_not_answered_by_one_that_shares_letters(typed: str) -> None:
    found = run("finetune", typed, "3")
    assert f"No such option: {typed}" in found
    assert "Possible options" not in found
    assert "Try 'quantlora finetune -h' for help" in found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "wanted"), [("quantlora fin", "finetune"), ("quantlora finetune --pack", "--packing")]
)
def test_the_shell_completes_commands_and_options(words: str, wanted: str, run_python) -> None:
    program = "from quantlora.cli import app; app(prog_name='quantlora')"
    shell = {
        "_QUANTLORA_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    assert wanted in run_python("-c", program, **shell).stdout.split()


def test_help_offers_completion() -> None:
    assert "--install-completion" in run("--help")


def test_no_color_means_no_color() -> None:
    plain = CliRunner().invoke(app, ["plugins"], env={"NO_COLOR": "1", "FORCE_COLOR": "1"}).output
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", plain)


def test_inspect_has_the_names_that_finetune_has() -> None:
    found = run("inspect", "--help")
    assert "--target-modules" in found
    assert "--rank" in found
