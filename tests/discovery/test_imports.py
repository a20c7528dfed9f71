"""What is imported when: quantlora is light, and optional libraries stay where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
RULES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
OPTIONAL = RULES["flake8-tidy-imports"]["banned-module-level-imports"]


@pytest.fixture
def imported(run_python):
    """Top-level modules that are imported after ``code`` ran in a fresh process."""

    def run(code: str) -> set[str]:
        code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
        return set(run_python("-c", code).stdout.split())

    return run


def test_import_quantlora_imports_neither_torch_nor_an_optional_library(imported):
    modules = imported("import quantlora")
    assert modules.isdisjoint(["torch", "transformers", "numpy", *OPTIONAL])


def test_loading_all_plugins_imports_no_torch(imported):
    modules = imported("from quantlora.discovery.plugins import load_plugins; load_plugins()")
    assert modules.isdisjoint(["torch", "transformers", *OPTIONAL])


def test_the_report_imports_no_torch(imported):
    modules = imported("from quantlora.env.report import make_report; make_report()")
    assert modules.isdisjoint(["torch", "transformers", *OPTIONAL])


def test_building_the_registry_imports_no_optional_library(imported):
    modules = imported("import quantlora; quantlora.registry()")
    assert modules.isdisjoint(OPTIONAL)


def test_wrapping_a_plain_model_imports_no_optional_library(imported):
    modules = imported(
        "import quantlora; from torch import nn\n"
        "quantlora.wrap(nn.Sequential(nn.Linear(4, 4)), r=2)"
    )
    assert modules.isdisjoint([*OPTIONAL, "transformers"])


def test_the_command_lines_help_imports_no_torch(imported):
    assert "torch" not in imported("import quantlora.cli")
