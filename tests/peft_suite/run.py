"""Running PEFT's tests, where they lie, in a process in which its names lead to quantlora."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.peft_suite.outcomes import read_outcomes

#: The environment variable that names the folder of PEFT's tests.
SOURCE = "QUANTLORA_PEFT_TESTS"
ROOT = Path(__file__).parents[2]
#: PEFT's tests that are about LoRA and do not live on models of the hub.
FILES = (
    "test_custom_models.py",
    "test_initialization.py",
    "test_lora_variants.py",
    "test_target_parameters.py",
    "test_trainable_tokens.py",
)


def tests_folder() -> Path | None:
    """Where a developer has said that PEFT's tests are."""
    given = os.environ.get(SOURCE)
    return Path(given) if given else None


def run_suite(
    folder: Path, files: tuple[str, ...] = FILES, choose: str = "", limit: int = 7200
) -> list[dict[str, Any]]:
    """The outcome of each test of ``files`` in ``folder``; ``choose`` is pytest's ``-k``."""
    with tempfile.TemporaryDirectory() as scratch:
        package = _package(Path(scratch) / "peft_tests", folder)
        outcomes = Path(scratch) / "outcomes.jsonl"
        outcomes.touch()
        command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider"]
        command += ["--continue-on-collection-errors"]
        command += ["-p", "tests.peft_suite.plugin", f"--rootdir={scratch}", "-W", "ignore"]
        command += ["-k", choose] if choose else []
        found = subprocess.run(
            [*command, *(str(package / name) for name in files)],
            cwd=scratch,
            env={**os.environ, **_environment(), "PEFT_SUITE_OUTCOMES": str(outcomes)},
            stdout=sys.stderr,
            timeout=limit,
            check=False,
        )
        if found.returncode not in (0, 1):
            raise RuntimeError(f"pytest ended with {found.returncode}")
        return read_outcomes(outcomes)


def _environment() -> dict[str, str]:
    """This tree first; no waiting for a hub, whose models are not counted."""
    paths = (str(ROOT), os.environ.get("PYTHONPATH", ""))
    return {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _package(package: Path, folder: Path) -> Path:
    """``folder`` as a package, which its relative imports want: links, no copies."""
    package.mkdir()
    (package / "__init__.py").touch()
    for file in folder.glob("*.py"):
        if file.name != "__init__.py":
            (package / file.name).symlink_to(file.resolve())
    return package
