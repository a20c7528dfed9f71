"""``docs/tutorial.ipynb``: its outputs are those of its code, and the code runs."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest

from tests.docs.pages import ROOT

_SPEC = importlib.util.spec_from_file_location("notebook", ROOT / "docs" / "_site" / "notebook.py")
assert _SPEC is not None
assert _SPEC.loader is not None
notebook: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(notebook)

STORED = json.loads(notebook.NOTEBOOK.read_text("utf-8"))
CODE = [cell for cell in STORED["cells"] if cell["cell_type"] == "code"]


def test_the_stored_outputs_are_of_the_code_that_stands_there() -> None:
    """After a change of a cell: ``python docs/_site/notebook.py``."""
    assert STORED["metadata"]["sources"] == notebook.sources_digest(STORED)
    assert [cell["execution_count"] for cell in CODE] == [*range(1, len(CODE) + 1)]


def test_the_page_shows_tables_pictures_and_text() -> None:
    page = notebook.as_markdown()
    assert page.startswith("# Tutorial")
    assert "data:image/png;base64," in page
    assert '<div class="output"><table' in page
    assert "```text\nloss without the adapter" in page


def kinds(cells: list[Any]) -> list[Any]:
    """What each cell gives: texts, tables, pictures."""
    return [[sorted(out.get("data", ["text"])) for out in cell["outputs"]] for cell in cells]


@pytest.mark.slow
def test_every_cell_runs_and_says_the_same_but_for_numbers() -> None:
    pytest.importorskip("nbclient", reason="pip install quantlora[notebook]")
    pytest.importorskip("ipykernel", reason="pip install quantlora[notebook]")
    fresh = [cell for cell in notebook.executed()["cells"] if cell["cell_type"] == "code"]
    assert kinds(fresh) == kinds(CODE)
    printed = [out["text"] for cell in fresh for out in cell["outputs"] if "text" in out]
    assert any("the weights below them stay packed" in text for text in printed)
