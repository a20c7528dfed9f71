"""Adapters that the installed PEFT makes itself on experts, by layer names and "all-linear"."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import quantlora
from tests.compatibility.families import classes
from tests.compatibility.tiny_config import tiny_config

pytest.importorskip("transformers.conversion_mapping")  # Transformers 5

IDS = torch.arange(24).reshape(2, 12)
#: PEFT knows them by these names; of Mixtral "all-linear" too.
TARGETS: dict[str, Any] = {
    "mixtral": ["w1", "w2", "w3", "q_proj"],
    "qwen3_moe": ["gate_proj", "up_proj", "down_proj"],
    "olmoe": "all-linear",
    "deepseek_v3": ["gate_proj", "up_proj", "down_proj"],
    "hunyuan_v1_moe": "all-linear",
    "minimax_m2": "all-linear",
}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(IDS).logits
    return found


@pytest.mark.parametrize("family", TARGETS)
def test_what_peft_saves_computes_the_same_here(family: str, tmp_path: Path) -> None:
    import peft

    config_class, model_class = classes(family)
    torch.manual_seed(0)
    kind: Any = model_class
    plain = kind._from_config(tiny_config(config_class), experts_implementation="eager")
    for parameter in plain.parameters():
        parameter.data = 0.2 * torch.randn_like(parameter)
    fields = peft.LoraConfig(r=2, target_modules=TARGETS[family], init_lora_weights=False)
    theirs = peft.get_peft_model(copy.deepcopy(plain), fields)
    theirs.save_pretrained(tmp_path)
    model = quantlora.load_adapter(copy.deepcopy(plain), tmp_path)
    assert float((logits(theirs) - logits(plain)).abs().max()) > 0.01
    assert float((logits(model) - logits(theirs)).abs().max()) < 1e-5
    quantlora.save_adapter(model, tmp_path / "again")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "again")
    assert float((logits(again) - logits(theirs)).abs().max()) < 1e-5
