"""``quantlora inspect FILE.gguf``: from the header alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import quantlora
from quantlora.cli import app

pytest.importorskip("gguf")

from .tiny_files import write_tiny


def test_blocks_and_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    path = write_tiny(tmp_path, "llama")
    done = CliRunner().invoke(app, ["inspect", str(path), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    model = quantlora.load(str(path))
    formats = {kind["name"]: kind["format"] for kind in found["kinds"]}
    assert formats["q_proj"].startswith("gguf Q")
    stored = sum(part["count"] * part["bytes"] for part in found["parts"])
    assert 0.7 * path.stat().st_size < stored < path.stat().st_size
    assert found["architecture"] == type(model).__name__
