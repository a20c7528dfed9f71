"""LoRA's own first values: distributed as in PEFT."""

from __future__ import annotations

from typing import Any

import peft
import pytest
from torch import nn

import quantlora


@pytest.mark.parametrize("init", [True, False, "gaussian"])
def test_a_and_b_are_zero_where_they_are_in_peft(init: bool | str):
    fields: dict[str, Any] = {"r": 4, "target_modules": ["0"], "init_lora_weights": init}
    ours = quantlora.wrap(nn.Sequential(nn.Linear(16, 24)), **fields)[0]
    theirs = peft.get_peft_model(nn.Sequential(nn.Linear(16, 24)), peft.LoraConfig(**fields))
    layer = theirs.base_model.model[0]
    for mine, other in ((ours.lora_A, layer.lora_A), (ours.lora_B, layer.lora_B)):
        assert bool(mine["default"].weight.any()) == bool(other["default"].weight.any())


def test_the_default_draws_a_uniformly_below_one_over_the_root_of_the_inputs():
    model = quantlora.wrap(nn.Sequential(nn.Linear(400, 24)), r=16, target_modules=["0"])
    A = model[0].lora_A["default"].weight.detach()
    assert A.abs().max() <= 400**-0.5
    assert A.std() == pytest.approx(400**-0.5 / 3**0.5, rel=0.05)


def test_gaussian_draws_a_with_a_deviation_of_one_over_the_rank():
    fields: dict[str, Any] = {"r": 16, "target_modules": ["0"], "init_lora_weights": "gaussian"}
    A = (
        quantlora.wrap(nn.Sequential(nn.Linear(400, 24)), **fields)[0]
        .lora_A["default"]
        .weight.detach()
    )
    assert A.std() == pytest.approx(1 / 16, rel=0.05)
