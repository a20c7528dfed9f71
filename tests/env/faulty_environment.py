"""Environments with a fault: the real packages, some taken away, some put in their place.

A folder of links stands in for site-packages; ``python -S`` sees it and the standard library only.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SITE = Path(sysconfig.get_paths()["purelib"])

#: Prints the report's verdict on a backend, and the error that `wrap` raises for it.
SCRIPT = """
import json, sys, warnings
from quantlora.env.report import make_report
backend, deep = sys.argv[1], sys.argv[2] == "deep"
(found,) = make_report(backend, deep).as_json()["backends"]
import quantlora
from torch import nn
found["error"] = found["kind"] = ""
try:
    quantlora.wrap(nn.Sequential(nn.Linear(64, 64)), backend=backend, r=2)
except quantlora.QuantloraError as error:
    found["error"], found["kind"] = str(error), type(error).__name__
plain = quantlora.wrap(nn.Sequential(nn.Linear(64, 64)), r=2)
found["plain"] = type(plain[0]).__name__
print(json.dumps(found))
"""


class Environment:
    """One faulty environment, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for entry in SITE.iterdir():
            if entry.suffix != ".pth" and entry.name != "__pycache__":
                (folder / entry.name).symlink_to(entry)

    def remove(self, distribution: str) -> None:
        """Take a distribution away, if it is there."""
        try:
            files = importlib.metadata.distribution(distribution).files or []
        except importlib.metadata.PackageNotFoundError:
            return
        for name in {file.parts[0] for file in files} - {".."}:
            (self.folder / name).unlink(missing_ok=True)

    def put(self, distribution: str, version: str, modules: Mapping[str, str]) -> None:
        """Put a distribution of that name and version there, with these files."""
        self.remove(distribution)
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {distribution}\nVersion: {version}\n")
        for path, text in modules.items():
            file = self.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    def ask(self, backend: str, deep: bool = False) -> dict[str, Any]:
        """The verdict on a backend there, and what `wrap` says."""
        # The working tree, but not an environment inside it: its packages are what is taken away.
        tree = [path for path in sys.path if Path(path).is_relative_to(ROOT)]
        editable = [path for path in tree if not Path(path).is_relative_to(sys.prefix)]
        done = subprocess.run(
            [sys.executable, "-S", "-c", SCRIPT, backend, "deep" if deep else "quick"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(self.folder), *editable])},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
