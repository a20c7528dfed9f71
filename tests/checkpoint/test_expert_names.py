"""Dense layers with the names of experts: PEFT leaves them out of a file, so saving says it."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import quantlora
from quantlora.errors import AdapterWarning
from tests.compatibility.families import classes
from tests.compatibility.tiny_config import tiny_config

NAMES = "PEFT takes the names down_proj, gate_proj, up_proj"
IDS = torch.arange(24).reshape(2, 12)


def wrapped(model_type: str, **fields: Any) -> tuple[Any, Any]:
    """The plain model and the wrapped one, its mixture computed one expert after the other."""
    pytest.importorskip("transformers.conversion_mapping")  # Transformers 5
    config_class, model_class = classes(model_type)
    torch.manual_seed(0)
    plain: Any = model_class
    plain = plain._from_config(tiny_config(config_class), experts_implementation="eager").double()
    model = quantlora.wrap(copy.deepcopy(plain), r=2, init_lora_weights=False, **fields)
    return plain.eval(), model.eval()


def loaded_by_peft(plain: Any, folder: Path) -> Any:
    import peft

    return peft.PeftModel.from_pretrained(plain, folder, autocast_adapter_dtype=False).eval()


@pytest.mark.parametrize("model_type", ["deepseek_v3", "glm4_moe"])
def test_layers_that_peft_leaves_out_are_told_when_saving(model_type: str, tmp_path: Path) -> None:
    plain, model = wrapped(model_type, target_experts=False)
    with pytest.warns(AdapterWarning, match=NAMES):
        quantlora.save_adapter(model, tmp_path)
    theirs = loaded_by_peft(plain, tmp_path).base_model.model
    assert not hasattr(theirs.get_submodule("model.layers.0.mlp.gate_proj"), "lora_A")


def test_with_experts_peft_does_not_load_such_a_file(tmp_path: Path) -> None:
    """It gives ``gate_up_proj`` twice the rank, for the dense layers' names."""
    plain, model = wrapped("deepseek_v3")
    with pytest.warns(AdapterWarning, match="does not load the file for"):
        quantlora.save_adapter(model, tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        loaded_by_peft(plain, tmp_path)


def test_without_these_layers_peft_computes_the_same(tmp_path: Path) -> None:
    plain, model = wrapped("deepseek_v3", exclude_modules=["gate_proj", "up_proj", "down_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdapterWarning)
        quantlora.save_adapter(model, tmp_path)
    theirs = loaded_by_peft(plain, tmp_path)
    assert torch.allclose(theirs(IDS).logits, model(IDS).logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "bert"])
def test_other_architectures_are_saved_without_a_word(model_type: str, tmp_path: Path) -> None:
    _, model = wrapped(model_type)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdapterWarning)
        quantlora.save_adapter(model, tmp_path)


def test_quantlora_loads_all_layers_of_such_a_file(tmp_path: Path) -> None:
    plain, model = wrapped("deepseek_v3")
    with pytest.warns(AdapterWarning, match=NAMES):
        quantlora.save_adapter(model, tmp_path)
    again = quantlora.load_adapter(plain, tmp_path)
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_a_type_that_peft_does_not_convert_is_saved_without_a_word(tmp_path: Path) -> None:
    plain, model = wrapped("qwen2_moe", target_experts=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdapterWarning)
        quantlora.save_adapter(model, tmp_path)
    theirs = loaded_by_peft(plain, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, model(IDS).logits)
