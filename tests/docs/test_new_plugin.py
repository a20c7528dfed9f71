"""``quantlora new-plugin`` writes projects that work as they are, and overwrites nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from quantlora.cli import app
from tests.docs.fresh import fresh_environment, run, without_paths
from tests.docs.pages import ROOT

EXAMPLE = ROOT / "docs" / "examples" / "quantlora-absmax8"
KINDS = ("format", "variant", "initializer")


def new(folder: Path, name: str, *more: str):
    return CliRunner().invoke(app, ["new-plugin", name, "--folder", str(folder), *more])


@pytest.mark.parametrize("kind", KINDS)
def test_a_project_is_whole_and_names_itself(kind: str, tmp_path: Path) -> None:
    assert new(tmp_path, "my_own", "--kind", kind).exit_code == 0
    project = tmp_path / "quantlora-my-own"
    assert 'my_own = "quantlora_my_own.plugin"' in (project / "pyproject.toml").read_text()
    assert (project / "tests" / "test_my_own.py").exists()
    for file in project.rglob("*.*"):
        assert "$" not in file.read_text()
        if file.suffix == ".py":
            compile(file.read_text(), str(file), "exec")


def test_a_format_is_the_example_of_the_docs(tmp_path: Path) -> None:
    new(tmp_path, "absmax8")
    for file in EXAMPLE.rglob("*.py"):
        written = tmp_path / "quantlora-absmax8" / file.relative_to(EXAMPLE)
        assert written.read_text() == file.read_text()


def test_a_variant_is_that_of_the_docs(tmp_path: Path) -> None:
    new(tmp_path, "gain", "--kind", "variant")
    layer = (tmp_path / "quantlora-gain" / "quantlora_gain" / "layer.py").read_text()
    assert layer.split('"""\n\n', 1)[1] in (ROOT / "docs" / "plugins.md").read_text()


@pytest.mark.parametrize(
    "name", ["", "My", "2bit", "a-b", "a__b", "_a", "a_", "../a", "class", "auto", "x" * 51]
)
def test_a_name_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    result = new(tmp_path, name)
    assert result.exit_code == 1
    assert "choose another one" in result.stderr or "is no name for a plugin" in result.stderr
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    kept = tmp_path / "quantlora-mine"
    kept.mkdir()
    (kept / "notes").write_text("dear")
    result = new(tmp_path, "mine")
    assert result.exit_code == 1
    assert "exists, and is left as it is" in result.stderr
    assert [file.read_text() for file in kept.iterdir()] == ["dear"]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    result = new(tmp_path / "gone", "mine")
    assert result.exit_code == 1
    assert "is no folder" in result.stderr


@pytest.mark.slow
def test_the_projects_tests_pass_as_written_on_the_built_wheel(tmp_path: Path) -> None:
    for kind in KINDS:
        new(tmp_path, f"new_{kind}", "--kind", kind)
    projects = sorted(tmp_path.glob("quantlora-new-*"))
    python = fresh_environment(tmp_path / "fresh", projects)
    options = {"cwd": tmp_path, "env": without_paths()}
    run(python.with_name("quantlora"), "new-plugin", "from_the_wheel", **options)
    assert (tmp_path / "quantlora-from-the-wheel" / "pyproject.toml").exists()
    for project in projects:
        run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", project / "tests", **options)
