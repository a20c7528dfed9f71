"""The PAGE's examples run, and its tables name what there is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from quantlora_bnb.settings import Settings4bit, Settings8bit
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import quantlora
from quantlora import LoraLinear
from quantlora.testing.models import tiny_llama

PAGE = (Path(__file__).parents[3] / "docs" / "bnb.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
FORMATS = ("bitsandbytes_4bit", "bitsandbytes_4bit", "bitsandbytes_8bit")


def names(folder: Path, quantizer: str) -> dict[str, Any]:
    """What the examples take as given."""
    model = tiny_llama()
    if quantizer == "bitsandbytes_8bit":
        quantlora.wrap(model, backend=quantizer, r=4)
    known = {"torch": torch, "quantlora": quantlora, "model": model, "folder": folder}
    kinds = (AutoModelForCausalLM, BitsAndBytesConfig)
    return {**known, **{kind.__name__: kind for kind in kinds}}


@pytest.mark.parametrize(("example", "quantizer"), zip(EXAMPLES, FORMATS, strict=True))
def test_an_example_runs(example: str, quantizer: str, folder: Path) -> None:
    scope = names(folder, quantizer)
    exec(compile(example, "docs/bnb.md", "exec"), scope)
    layer = scope["model"].model.layers[0].self_attn.q_proj
    assert isinstance(layer, LoraLinear)
    assert layer.quantizer.name == quantizer


def test_the_table_of_options_is_complete() -> None:
    table = re.findall(r"^\| `(\w+)` \| (\d)-bit \|", PAGE, re.MULTILINE)
    fields = [(field.name, "4") for field in dataclasses.fields(Settings4bit)]
    assert table == fields + [(field.name, "8") for field in dataclasses.fields(Settings8bit)]
