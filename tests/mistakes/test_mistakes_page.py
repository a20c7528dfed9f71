"""Every mistake of docs/mistakes.md is made again, and the whole text compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mistakes.cases import COMMANDS, SNIPPETS, prepare
from tests.mistakes.page import PAGE, called, section
from tests.tools.typed_commands import inside, typed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mistakes")
    with inside(made):
        prepare(made)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistake_at_the_command_line_is_answered_as_the_page_says(
    name: str, folder: Path
) -> None:
    shown = typed(COMMANDS[name], folder)
    assert "Traceback" not in shown
    assert section(name, shown) in PAGE.read_text("utf-8")


@pytest.mark.parametrize("name", SNIPPETS)
def test_a_mistake_in_python_is_answered_as_the_page_says(name: str, folder: Path) -> None:
    assert section(name, called(SNIPPETS[name], folder)) in PAGE.read_text("utf-8")


def test_the_page_has_no_mistake_that_is_not_tried() -> None:
    titles = [line[4:] for line in PAGE.read_text("utf-8").splitlines() if line[:4] == "### "]
    assert titles == [*COMMANDS, *SNIPPETS]
