"""What Transformers and PEFT do with a folder that was saved here and is named in one call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, pipeline

import quantlora
from quantlora.checkpoint.auto_mapping import auto_mapping
from quantlora.testing.models import save_tiny_llama, tiny_llama, tiny_tokenizer

IDS = torch.arange(8)[None]


@pytest.fixture
def adapter(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """Its folder, and the logits with it."""
    base: Any = tiny_llama()
    base.name_or_path = str(save_tiny_llama(tmp_path / "base"))
    fields = {"target_modules": ["q_proj", "up_proj"], "init_lora_weights": False}
    model = quantlora.wrap(base, r=2, **fields).eval()
    with torch.no_grad():
        return quantlora.save_adapter(model, tmp_path / "adapter"), model(IDS).logits


def test_transformers_auto_class_takes_the_folder(adapter: tuple[Path, torch.Tensor]) -> None:
    pytest.importorskip("peft")
    folder, wanted = adapter
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(model(IDS).logits, wanted)


def test_a_pipeline_takes_the_folder(adapter: tuple[Path, torch.Tensor]) -> None:
    pytest.importorskip("peft")
    folder, wanted = adapter
    made = pipeline("text-generation", model=str(folder), tokenizer=tiny_tokenizer())
    torch.testing.assert_close(made.model.eval()(IDS).logits, wanted)


def test_the_class_is_written_where_no_task_type_is(adapter: tuple[Path, torch.Tensor]) -> None:
    fields = json.loads((adapter[0] / "adapter_config.json").read_text())
    assert fields["auto_mapping"] == {
        "base_model_class": "LlamaForCausalLM",
        "parent_library": "transformers.models.llama.modeling_llama",
    }


def test_a_task_type_is_enough() -> None:
    assert auto_mapping(tiny_llama(), "CAUSAL_LM") is None


def test_a_class_nobody_can_import_is_not_written() -> None:
    class Local(nn.Module):
        """Of this function."""

    assert auto_mapping(Local(), None) is None
    sharded = type("Sharded", (type(tiny_llama()),), {})  # as FSDP2 makes one
    assert sharded.__module__ == __name__
    model = tiny_llama()
    model.__class__ = sharded
    found = auto_mapping(model, None)
    assert found is not None
    assert found["base_model_class"] == "LlamaForCausalLM"
