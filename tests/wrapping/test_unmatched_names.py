"""Names in ``target_modules`` that pick nothing, and those that pick what is no layer."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

import quantlora
from quantlora.errors import AdapterWarning, TargetError
from quantlora.testing.models import tiny_llama
from tests.tools.expert_models import MODELS
from tests.tools.versions import transformers_5


def said(model: Any, **fields: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        quantlora.wrap(model, r=2, **fields)
    return [str(one.message) for one in found if issubclass(one.category, AdapterWarning)]


def test_a_name_that_matches_nothing_is_said_with_near_ones() -> None:
    [text] = said(tiny_llama(), target_modules=["q_proj", "v_prj"])
    assert text == (
        "target_modules 'v_prj' match no module of this model. Near names: v_proj, q_proj, o_proj."
    )


@transformers_5
@pytest.mark.parametrize("family", MODELS)
def test_names_of_projections_within_fused_experts_are_said(family: str) -> None:
    [text] = said(MODELS[family](), target_modules=["q_proj", "no_expert_proj"])
    assert "target_modules 'no_expert_proj' match no module of this model." in text
    assert "fused experts are parameters and get no adapter: name them by target_para" in text


@pytest.mark.parametrize("names", [["q_proj", "mlp.up_proj"], ["lm_head", "0.self_attn.v_proj"]])
def test_names_that_match_are_no_matter(names: list[str]) -> None:
    assert said(tiny_llama(), target_modules=names) == []


def test_names_that_are_left_out_on_purpose_are_no_matter() -> None:
    fields = {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["v_proj"]}
    assert said(tiny_llama(), **fields) == []


@transformers_5
@pytest.mark.parametrize("family", MODELS)
def test_experts_as_a_target_are_refused_with_their_parameters(family: str) -> None:
    with pytest.raises(TargetError, match=r"experts holds fused experts.*target_parameters=\['exp"):
        quantlora.wrap(MODELS[family](), target_modules=["q_proj", "experts"])
