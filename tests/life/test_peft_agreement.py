"""Against PEFT, wherever PEFT is right: logits and gradients within 1e-5, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import quantlora
from tests.tools.peft_oracle import IDS, check_gradients, check_logits, pair

VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 6},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "dora": {"r": 4, "use_dora": True},
    "rsdora": {"r": 4, "use_dora": True, "use_rslora": True},
    "lora_bias": {"r": 4, "lora_alpha": 2, "lora_bias": True},
    "all_linear": {"r": 2, "target_modules": "all-linear"},
    "patterns": {
        "r": 4,
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 7},
        "alpha_pattern": {"up_proj": 3},
    },
    "some_layers": {"r": 4, "layers_to_transform": [1]},
    "regex": {"r": 4, "target_modules": r".*layers\.0\..*(q|down)_proj"},
    "excluded": {"r": 4, "target_modules": "all-linear", "exclude_modules": ["q_proj"]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_agree(variant: str, tmp_path: Path) -> None:
    check_logits(pair(tmp_path, {"default": VARIANTS[variant]}))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_agree(variant: str, tmp_path: Path) -> None:
    check_gradients(pair(tmp_path, {"default": VARIANTS[variant]}), "default")


@pytest.mark.parametrize("variant", ["lora", "dora", "lora_bias"])
def test_gradients_agree_under_dropout(variant: str, tmp_path: Path) -> None:
    """The same seed drops the same elements: one draw for each layer, in the layers' order."""
    both = pair(tmp_path, {"default": {**VARIANTS[variant], "lora_dropout": 0.3}})
    both.theirs.train()
    both.ours.train()
    check_gradients(both, "default")


def test_dropout_is_off_in_eval(tmp_path: Path) -> None:
    both = pair(tmp_path, {"default": {"r": 4, "lora_dropout": 0.5}})
    both.theirs.eval()
    both.ours.eval()
    check_logits(both)


@pytest.mark.parametrize("second", ["lora", "rslora", "lora_bias", "patterns"])
def test_two_active_adapters_agree(second: str, tmp_path: Path) -> None:
    both = pair(tmp_path, {"default": VARIANTS["lora"], "second": VARIANTS[second]})
    both.theirs.base_model.set_adapter(["default", "second"])
    quantlora.set_adapter(both.ours, ["default", "second"])
    check_logits(both)
    check_gradients(both, "default", "second")


NAMES = ["default", "__base__", "second", "second", "default"]


@pytest.mark.parametrize("second", ["lora", "rslora", "lora_bias", "patterns"])
def test_mixed_batches_agree(second: str, tmp_path: Path) -> None:
    """PEFT refuses DoRA here; the list of operations has it, against float64."""
    both = pair(tmp_path, {"default": VARIANTS["lora"], "second": VARIANTS[second]})
    both.theirs.eval()
    both.ours.eval()
    with torch.no_grad(), quantlora.mixed_batch(both.ours, NAMES):
        logits = both.ours(IDS).logits
    wanted = both.theirs(IDS, adapter_names=NAMES).logits
    assert torch.allclose(logits, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora", "patterns"])
def test_merged_weights_agree(variant: str, tmp_path: Path) -> None:
    both = pair(tmp_path, {"default": {**VARIANTS[variant], "target_modules": "all-linear"}})
    quantlora.merge_and_unload(both.ours)
    wanted = both.theirs.merge_and_unload().state_dict()
    for key, tensor in both.ours.state_dict().items():
        assert torch.allclose(tensor, wanted[key], rtol=0, atol=1e-6), key
