"""``docs/tutorial.ipynb``: executed in place, and shown as a page of the site.

    pip install -c constraints.txt -e ".[notebook]" && python docs/_site/notebook.py

runs every cell in a fresh kernel and an empty folder, and writes the outputs.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[1] / "tutorial.ipynb"
#: Seconds for one cell.
LIMIT = 300


def sources_digest(notebook: Any) -> str:
    """Of the code cells; in the metadata it says which code the outputs are of."""
    code = [text_of(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256("\n\0".join(code).encode()).hexdigest()


def text_of(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def executed(path: Path = NOTEBOOK) -> Any:
    """The notebook with fresh outputs; raises nbclient's `CellExecutionError` where a cell does."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(
            notebook, timeout=LIMIT, kernel_name="python3", resources=resources
        ).execute()
    for cell in notebook.cells:
        cell.metadata.clear()  # times of execution, which differ each time
        if cell.cell_type == "code":  # progress bars and warnings are no results
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "sources": sources_digest(notebook),
    }
    return notebook


def as_markdown(path: Path = NOTEBOOK) -> str:
    """The page: text, code, and below each piece of code what it has printed or drawn."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return "\n\n".join(part for cell in cells for part in _parts(cell)) + "\n"


def _parts(cell: dict[str, Any]) -> list[str]:
    source = text_of(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    return [f"```python\n{source}\n```", *(_shown(output) for output in cell["outputs"])]


def _shown(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        encoded = text_of(data["image/png"]).replace("\n", "")
        return f'<img alt="{text_of(data["text/plain"])}" src="data:image/png;base64,{encoded}">'
    if "text/html" in data:
        return f'<div class="output">{text_of(data["text/html"])}</div>'
    printed = text_of(output["text"] if "text" in output else data.get("text/plain", ""))
    return f"```text\n{printed.rstrip()}\n```"


def main() -> None:
    import nbformat

    nbformat.write(executed(), NOTEBOOK)


if __name__ == "__main__":
    main()
