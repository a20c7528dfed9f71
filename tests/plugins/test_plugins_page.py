"""``docs/plugins.md`` is true: its plugin installs, works and passes the suite."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
FILES = dict(re.findall(r"\*\*`([\w.]+)`\*\*\n\n```\w+\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with the page's files and the metadata that pip would make of its pyproject."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    project = tomllib.loads(FILES["pyproject.toml"])["project"]
    info = tmp_path / f"quantlora_absmax8-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    points = "\n".join(f"{k} = {v}" for k, v in project["entry-points"]["quantlora"].items())
    (info / "entry_points.txt").write_text(f"[quantlora]\n{points}\n")
    return tmp_path


def test_the_example_of_the_page_works(run_python, installed):
    output = run_python(str(installed / "use_it.py"), path=[installed]).stdout
    assert "2 of 2 linear layers get an adapter." in output
    assert output.count("absmax8") >= 4


def test_the_backend_of_the_page_passes_the_deep_check(run_python, installed):
    arguments = ["-m", "quantlora.env", "--deep", "--backend", "absmax8"]
    assert "READY" in run_python(*arguments, path=[installed]).stdout


@pytest.mark.slow
def test_the_suite_passes_on_the_format_of_the_page(run_python, installed):
    file = str(installed / "test_absmax8.py")
    done = run_python(
        "-m", "pytest", "-p", "no:cacheprovider", "-q", file, path=[installed], check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_every_reason_of_the_page_is_one_that_a_test_provokes():
    tests = Path(__file__).with_name("test_isolation.py").read_text()
    rows = PAGE.split("| the reason says |")[1].split("\n\n")[0].splitlines()[2:]
    for row in rows:
        reason = row.split("`")[-2]
        fixed = max(re.split(r"\.\.\.|\{|'", reason), key=len).strip()
        assert fixed in tests, f"{reason!r} is in no test"
