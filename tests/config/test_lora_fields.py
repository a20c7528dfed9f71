"""The fields of a config as keywords: named in signatures, and held by a type checker."""

from __future__ import annotations

import dataclasses
import inspect
import pydoc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import quantlora
from quantlora.config.lora_fields import LoraFields

FIELDS = {field.name: field for field in dataclasses.fields(quantlora.LoraConfig)}


def test_the_keywords_have_the_types_of_the_fields() -> None:
    assert get_type_hints(LoraFields) == get_type_hints(quantlora.LoraConfig)


@pytest.mark.parametrize("function", [quantlora.wrap, quantlora.explain, quantlora.quantize])
def test_the_signature_names_every_field_with_its_default(function: Callable[..., Any]) -> None:
    parameters = inspect.signature(function).parameters
    assert set(FIELDS) <= set(parameters)
    assert parameters["r"].default == 8
    assert parameters["target_modules"].default == "all-linear"


def test_help_shows_them() -> None:
    text = pydoc.render_doc(quantlora.wrap, renderer=pydoc.plaintext)
    assert "r: 'int' = 8" in text or "r: int = 8" in text
    assert "lora_alpha" in text


SNIPPET = """
import quantlora
from torch import nn

model: nn.Module = nn.Linear(2, 2)
quantlora.wrap(model, r=8, lora_alpha=16, target_modules=["q_proj"])
quantlora.wrap(model, quantlora.LoraConfig(r=8))
quantlora.wrap(model, rnk=8)
quantlora.wrap(model, r="8")
"""


@pytest.mark.slow
def test_mypy_finds_a_mistyped_field(tmp_path: Path) -> None:
    file = tmp_path / "snippet.py"
    file.write_text(SNIPPET)
    command = [sys.executable, "-m", "mypy", str(file)]  # with the project's settings and cache
    root = Path(quantlora.__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if "error:" in line]
    assert [line.partition(": error")[0].rpartition(":")[2] for line in found] == ["8", "9"]
    assert 'Unexpected keyword argument "rnk"' in found[0]
