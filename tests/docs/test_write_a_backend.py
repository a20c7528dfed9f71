"""``docs/write-a-backend.md`` is its project, piece by piece, and the project works."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.fresh import fresh_environment, run, without_paths
from tests.docs.installed import install
from tests.docs.pages import ROOT, blocks

PROJECT = ROOT / "docs" / "examples" / "quantlora-absmax8"
PIECES = [block for block in blocks("docs/write-a-backend.md") if block.file]
FILES = {str(path.relative_to(PROJECT)): path.read_text() for path in PROJECT.rglob("*.py")}
USE_IT = next(block.code for block in PIECES if block.file == "use_it.py")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    files = {**FILES, "use_it.py": USE_IT}
    return install(tmp_path, files, "quantlora-absmax8", {"absmax8": "quantlora_absmax8.plugin"})


@pytest.mark.parametrize("piece", PIECES, ids=lambda block: f"{block.file}:{block.line}")
def test_a_piece_is_in_the_project(piece) -> None:
    if piece.file != "use_it.py":
        assert piece.code in (PROJECT / piece.file).read_text()


def test_the_pieces_are_the_whole_project() -> None:
    for name, text in FILES.items():
        shown = {line for piece in PIECES if piece.file == name for line in piece.code.splitlines()}
        missing = [line for line in text.splitlines() if line not in shown]
        assert not [line for line in missing if not line.startswith(('"""', "import", "from"))]


def test_the_entry_point_is_that_of_the_project() -> None:
    assert 'absmax8 = "quantlora_absmax8.plugin"' in (PROJECT / "pyproject.toml").read_text()


def test_it_is_used_as_the_page_says(run_python, installed) -> None:
    output = run_python(str(installed / "use_it.py"), path=[installed]).stdout
    assert "2 of 2 linear layers get an adapter." in output
    assert output.count("absmax8") >= 4


def test_the_deep_check_says_ready(run_python, installed) -> None:
    arguments = ["-m", "quantlora.env", "--deep", "--backend", "absmax8"]
    assert "READY" in run_python(*arguments, path=[installed]).stdout


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fresh_environment(tmp_path_factory.mktemp("fresh"), [PROJECT])


@pytest.mark.slow
def test_the_projects_tests_pass_on_the_built_wheel(fresh, tmp_path) -> None:
    options = {"cwd": tmp_path, "env": without_paths()}
    where = run(fresh, "-c", "import quantlora; print(quantlora.__file__)", **options)
    assert Path(where.strip()).is_relative_to(fresh.parents[1])
    assert "absmax8" in run(fresh.with_name("quantlora"), "plugins", **options)
    run(fresh, "-m", "pytest", "-q", "-p", "no:cacheprovider", PROJECT / "tests", **options)
