"""``docs/testing-a-plugin.md`` is true: its example passes, its tables are complete."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from quantlora.testing import QuantizerSuite
from quantlora.testing.base import SuiteBase

PAGE = (Path(__file__).parents[2] / "docs" / "testing-a-plugin.md").read_text()
FILES = dict(re.findall(r"\*\*`([\w.]+)`\*\*\n\n```\w+\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with the page's files and the plugin's metadata."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    info = tmp_path / "int8_blocks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: int8-blocks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[quantlora]\nint8_blocks = int8_blocks\n")
    return tmp_path


@pytest.mark.slow
def test_the_example_passes(run_python, installed):
    file = str(installed / "test_int8_blocks.py")
    done = run_python(
        "-m", "pytest", "-p", "no:cacheprovider", "-q", file, path=[installed], check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_every_part_of_the_suite_is_on_the_page():
    parts = [part.__name__ for part in QuantizerSuite.__mro__[1:-2]]
    assert re.findall(r"^\| `(\w+Tests)` \|", PAGE, re.MULTILINE) == parts


def test_every_setting_is_on_the_page():
    table = PAGE.split("## Settings")[1].split("| method |")[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert rows == list(inspect.get_annotations(SuiteBase))


def test_every_test_that_the_page_names_is_there():
    named = re.findall(r"`(test_\w+)(?!\w|\.)", PAGE)
    assert named
    assert not [name for name in named if not hasattr(QuantizerSuite, name)]
