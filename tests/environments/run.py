"""Make a second environment and run tests in it: ``python tests/environments/run.py [name ...]``.

Some libraries cannot live in one environment. Each ``<name>.txt`` beside this file is one more: a
virtual environment is made for it once, kept in the cache under a name that follows from the
file's content, and the suites below are run there on this working tree.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

#: What must hold with every supported version of Transformers. Agreement with PEFT is tested in the
#: main environment alone, with the version that is pinned there.
SHARED = [
    f"tests/{room}"
    for room in ("formats", "layers", "adapters", "wrapping", "checkpoint", "combining", "life")
]
NOT_HERE = "not peft"

#: Suites of each environment; those that need a library which is not there skip themselves.
SUITES = {
    "auto-gptq": [*SHARED, "plugins/gptq", "plugins/qalora"],
    "gptqmodel-2.2": ["tests/adapters", "tests/life", "plugins/gptq", "plugins/qalora"],
}

#: In first, because what follows is built without isolation, against this torch.
BUILD = [
    "torch==2.13.0",
    "setuptools",
    "wheel",
    "packaging",
    "ninja",
    "numpy",
    "hatchling",
    "editables",
]

ENVIRONMENT = {
    "BUILD_CUDA_EXT": "0",
    "GPTQMODEL_CPU_WORKERS": "2",
    "HF_HUB_OFFLINE": "1",
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Run tests in further environments.")
    parser.add_argument("names", nargs="*", help=f"{', '.join(SUITES)}; default: all")
    parser.add_argument("--make-only", action="store_true", help="do not run the tests")
    parser.add_argument("-m", dest="marker", default="not slow", help="as pytest's -m")
    options = parser.parse_args()
    codes = []
    for name in options.names or SUITES:
        python = make(name)
        if not options.make_only:
            codes.append(test(name, python, options.marker))
    return max(codes, default=0)


def make(name: str) -> Path:
    """The Python of the environment, made now unless the cache has it complete."""
    place = folder(name)
    python = place / "bin" / "python"
    if not (place / "complete").exists():
        print(f"making {place}", flush=True)
        shutil.rmtree(place, ignore_errors=True)
        run(sys.executable, "-m", "venv", str(place))
        pip(python, *BUILD)
    # Always: what the working tree needs and announces may have changed since.
    pins = str(HERE / f"{name}.txt")
    pip(python, "--no-build-isolation", "-r", pins, "-e", str(ROOT))
    (place / "complete").touch()
    return python


def folder(name: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = Path(os.environ.get("QUANTLORA_ENVIRONMENTS") or cache / "quantlora" / "environments")
    content = (HERE / f"{name}.txt").read_text() + repr((BUILD, sys.version_info[:2]))
    return root / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def test(name: str, python: Path, marker: str) -> int:
    suites = [suite for suite in SUITES[name] if (ROOT / suite).exists()]
    print(f"{name}: {' '.join(suites)}", flush=True)
    return run(str(python), "-m", "pytest", *suites, "-m", marker, "-k", NOT_HERE, check=False)


def pip(python: Path, *arguments: str) -> None:
    run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments)


def run(*command: str, check: bool = True) -> int:
    environment = {**os.environ, **ENVIRONMENT}
    return subprocess.run(command, cwd=ROOT, env=environment, check=check).returncode


if __name__ == "__main__":
    sys.exit(main())
