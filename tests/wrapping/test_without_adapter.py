"""Experts without an adapter are named, with their share of the parameters."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

import quantlora
from quantlora.errors import AdapterWarning
from quantlora.testing.models import tiny_llama
from tests.compatibility.families import classes
from tests.compatibility.tiny_config import tiny_config
from tests.tools.expert_models import BOTH, MODELS, mixtral

SHARE = "hold 61% of the model's parameters in gate_up_proj, down_proj"


def share_of(model: Any, *names: str) -> float:
    """Counted by hand."""
    sizes = {name: one.numel() for name, one in model.named_parameters()}
    return sum(n for name, n in sizes.items() if name.endswith(names)) / sum(sizes.values())


def said(model: Any, **fields: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quantlora.wrap(model, r=2, **fields)
    return [str(one.message) for one in caught if issubclass(one.category, AdapterWarning)]


@pytest.mark.parametrize("name", MODELS)
def test_all_linear_names_the_experts_that_it_passes_by(name: str) -> None:
    model = MODELS[name]()
    wanted = share_of(model, "gate_up_proj", "down_proj")
    (message,) = said(model)
    assert f"hold {wanted:.0%} of the model's parameters" in message
    assert f"target_parameters={BOTH}" in message


def test_what_is_named_is_what_is_left() -> None:
    (message,) = said(mixtral(), target_modules="all-linear", target_parameters=BOTH[1:])
    assert "in gate_up_proj, which are no layers" in message


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": "all-linear", "target_parameters": BOTH},
        {"target_modules": ["q_proj"]},
        {"target_modules": "all-linear", "exclude_modules": ["experts"]},
    ],
)
def test_nothing_is_said_of_experts_that_are_adapted_or_left_out_by_name(fields: Any) -> None:
    assert said(mixtral(), **fields) == []


def test_experts_that_stay_float_among_packed_layers_are_named() -> None:
    (message,) = said(mixtral(), backend="normalfloat", target_modules=["q_proj"])
    assert SHARE in message
    assert "they stay as they are (float32)" in message


def test_explain_shows_them_with_their_share() -> None:
    found = quantlora.explain(mixtral())
    rows = [row for row in found.rows if row.path.endswith("experts")]
    assert len(rows) == 2
    assert all("30.4% of the parameters" in row.reason and not row.wrapper for row in rows)
    assert any(SHARE in warning for warning in found.warnings)


@pytest.mark.parametrize("family", ["jetmoe", "llama4_text"])
def test_families_with_another_layout_are_named_too(family: str) -> None:
    config_class, model_class = classes(family)
    model: Any = model_class
    assert any("hold" in one for one in said(model._from_config(tiny_config(config_class))))


def test_a_dense_model_is_wrapped_without_a_word() -> None:
    assert said(tiny_llama()) == []
