"""A pytest plugin: as if PEFT had never been installed.

    python -m pytest -p tests.training.without_peft ...

It must be loaded before Transformers is imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from typing import Any


def hide_peft() -> None:
    """No import, no metadata, no spec."""
    sys.modules["peft"] = None  # type: ignore[assignment]
    find_spec, version = importlib.util.find_spec, importlib.metadata.version

    def other_version(name: str) -> str:
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    def other_spec(name: str, *rest: Any) -> Any:
        return None if name.partition(".")[0] == "peft" else find_spec(name, *rest)

    importlib.metadata.version, importlib.util.find_spec = other_version, other_spec


hide_peft()
