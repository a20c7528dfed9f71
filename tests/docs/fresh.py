"""A fresh environment with built wheels in it, for projects that stand on quantlora's."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from tests.docs.pages import ROOT


def run(*command: str | Path, **options) -> str:
    """The output of a command, which must succeed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def fresh_environment(folder: Path, projects: Iterable[Path]) -> Path:
    """Python of an environment with the built wheels of quantlora and of ``projects`` in it.

    Further libraries come from this environment; its own quantlora is editable, which a ``.pth``
    file in a folder that is itself named in one does not bring along.
    """
    for project in (ROOT, *projects):
        build = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder / "dist"]
        run(sys.executable, "-m", "pip", *build, project)
    run(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--no-deps", *(folder / "dist").glob("*.whl"))
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    outer = [
        sysconfig.get_paths()["purelib"],
        *(path for path in sys.path if "site-packages" in path),
    ]
    (site / "zz_libraries.pth").write_text("\n".join(outer))
    return python


def without_paths() -> dict[str, str]:
    """This process' environment without the folders that it has on its path."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
