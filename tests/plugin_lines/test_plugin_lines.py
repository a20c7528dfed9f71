"""Lines of code are counted as people count them, and the page has every plugin."""

from __future__ import annotations

from tests.plugin_lines.lines import BEGIN, END, PAGE, code_lines, formats

TEXT = '''"""A module."""

# a comment
import os  # with a comment


def path() -> str:
    """What it does,
    in two lines.
    """
    text = """no
    docstring"""
    return os.path.join(
        text,

        "x",
    )
'''


def test_blank_lines_comments_and_docstrings_are_no_code() -> None:
    assert code_lines(TEXT) == 8
    assert code_lines('"""Only a docstring."""\n\n') == 0


def test_the_page_has_every_format() -> None:
    table = PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [line.split("|")[1].strip() for line in table.strip().splitlines()[2:] if "|" in line]
    assert rows == [*(f"`{name}`" for name in formats()), "median", "`absmax8` of this page"]
