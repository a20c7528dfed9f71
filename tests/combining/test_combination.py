"""Weighted combinations: as in PEFT where PEFT is right, and exact where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils import merge_utils
from torch import Tensor, nn

import quantlora
from quantlora.combining.combine_layer import COMBINATION_TYPES
from quantlora.combining.task_arithmetic import ARITHMETIC, MAJORITIES
from quantlora.errors import AdapterError, ConfigError
from quantlora.testing.models import tiny_llama
from tests.tools.peft_oracle import TOLERANCE, Pair, check_logits, pair, relative

NAMES, WEIGHTS = ["default", "second"], [0.7, -0.4]
EQUAL = {"default": {"r": 4, "lora_alpha": 6}, "second": {"r": 4, "use_rslora": True}}


def combined(both: Pair, kind: str, **settings: Any) -> Pair:
    """The pair with the combination as the active adapter."""
    density = {"density": 0.6} if kind not in ("linear", "cat", "svd") else {}
    for add in (
        both.theirs.add_weighted_adapter,
        lambda *args, **given: quantlora.add_weighted_adapter(both.ours, *args, **given),
    ):
        add(NAMES, WEIGHTS, "sum", kind, **density, **settings)
    both.theirs.set_adapter("sum")
    return both


@pytest.mark.parametrize("kind", [kind for kind in COMBINATION_TYPES if "dare" not in kind])
def test_models_agree_with_peft(kind: str, tmp_path: Path) -> None:
    check_logits(combined(pair(tmp_path, EQUAL), kind))


@pytest.mark.parametrize("majority", MAJORITIES)
@pytest.mark.parametrize("kind", ARITHMETIC)
def test_tensors_agree_with_peft(kind: str, majority: str) -> None:
    """With one seed, for the ways that drop elements at random."""
    tensors, weights = list(torch.randn(3, 8, 5)), [0.5, -1.0, 2.0]
    theirs = getattr(merge_utils, "task_arithmetic" if kind == "linear" else kind)
    settings = {"density": 0.6} if kind != "linear" else {}
    settings |= {"majority_sign_method": majority} if "ties" in kind else {}
    torch.manual_seed(5)
    wanted = theirs(tensors, torch.tensor(weights), **settings)
    torch.manual_seed(5)
    assert relative(ARITHMETIC[kind](tensors, weights, 0.6, majority), wanted) <= 1e-6


@pytest.mark.parametrize("kind", ["ties", "ties_svd"])
def test_the_majority_by_frequency_agrees_with_peft(kind: str, tmp_path: Path) -> None:
    both = pair(tmp_path, EQUAL)
    check_logits(combined(both, kind, majority_sign_method="frequency"))


@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_different_ranks_and_targets_agree_with_peft(kind: str, tmp_path: Path) -> None:
    second = {"r": 7, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 3}}
    check_logits(combined(pair(tmp_path, {"default": {"r": 4}, "second": second}), kind))


def wrapped(**second: Any) -> nn.Module:
    model = tiny_llama()
    fields: dict[str, Any] = {"target_modules": ["q_proj"], "init_lora_weights": False}
    quantlora.wrap(model, r=3, use_rslora=True, **fields)
    quantlora.wrap(model, adapter_name="second", **{"r": 5, **fields, **second})
    for _, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def update(model: nn.Module, name: str) -> list[tuple[Tensor, Tensor | None]]:
    layers = [layer for _, layer in quantlora.lora_layers(model)]
    weights = [layer.dequantize() for layer in layers]
    pairs = list(zip(layers, weights, strict=True))
    return [(layer.delta_weight(name, w), layer.delta_bias(name, w)) for layer, w in pairs]


@pytest.mark.parametrize("kind", ["cat", "svd"])
@pytest.mark.parametrize("second", [{}, {"lora_bias": True}])
def test_exact_types_give_the_weighted_sum(kind: str, second: dict[str, Any]) -> None:
    model = wrapped(**second)
    rank = {"svd_rank": 8} if kind == "svd" else {}
    quantlora.add_weighted_adapter(model, NAMES, WEIGHTS, "sum", kind, **rank)
    parts = [update(model, name) for name in (*NAMES, "sum")]
    for (one, _), (two, bias), (total, total_bias) in zip(*parts, strict=True):
        assert relative(total, 0.7 * one - 0.4 * two) <= TOLERANCE
        assert bias is None or relative(total_bias, -0.4 * bias) <= TOLERANCE


def test_svd_takes_doras_own_update() -> None:
    model = wrapped(use_dora=True)
    quantlora.add_weighted_adapter(model, NAMES, WEIGHTS, "sum", "svd", svd_rank=64)
    for one, two, total in zip(*(update(model, name) for name in (*NAMES, "sum")), strict=True):
        assert relative(total[0], 0.7 * one[0] - 0.4 * two[0]) <= TOLERANCE


def test_cat_beyond_the_layers_rank_loses_nothing() -> None:
    model = wrapped(r=63)
    quantlora.add_weighted_adapter(model, NAMES, WEIGHTS, "sum", "cat")
    layer = next(layer for _, layer in quantlora.lora_layers(model))
    assert layer.r["sum"] == 64
    for one, two, total in zip(*(update(model, name) for name in (*NAMES, "sum")), strict=True):
        assert relative(total[0], 0.7 * one[0] - 0.4 * two[0]) <= TOLERANCE


def test_a_combination_is_saved_and_loaded(tmp_path: Path) -> None:
    model, ids = wrapped(target_modules=["q_proj", "up_proj"]), torch.arange(12)[None]
    quantlora.add_weighted_adapter(model, NAMES, WEIGHTS, "sum", "cat")
    quantlora.save_adapter(model, tmp_path, "sum")
    fresh = quantlora.load_adapter(tiny_llama(), tmp_path, "sum")
    assert torch.equal(fresh(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("second", "kind", "message"),
    [
        ({}, "linear", "equal ranks"),
        ({"use_dora": True}, "cat", "'svd'"),
    ],
)
def test_what_cannot_be_combined_says_why(second: Any, kind: str, message: str) -> None:
    model = wrapped(**second)
    with pytest.raises(AdapterError, match=message):
        quantlora.add_weighted_adapter(model, NAMES, WEIGHTS, "sum", kind)
    assert "sum" not in quantlora.adapters.state.adapter_state(model).configs


@pytest.mark.parametrize(
    ("weights", "settings", "message"),
    [
        ([1.0], {}, "one weight for each"),
        (WEIGHTS, {"combination_type": "catt"}, "Did you mean 'cat'"),
        (WEIGHTS, {"combination_type": "ties"}, "density"),
        (WEIGHTS, {"majority_sign_method": "vote"}, "majority_sign_method"),
    ],
)
def test_wrong_settings_are_named(weights: Any, settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        quantlora.add_weighted_adapter(wrapped(), NAMES, weights, "sum", **settings)
