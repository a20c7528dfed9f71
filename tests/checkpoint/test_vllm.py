"""What vLLM takes, and the reasons where it will not."""

from __future__ import annotations

import pytest

import quantlora
from tests.tools.expert_models import BOTH, mixtral


@pytest.mark.parametrize("fields", [{}, {"use_rslora": True}, {"target_modules": ".*q_proj"}])
def test_plain_lora_is_taken(make_wrapped, tmp_path, fields):
    quantlora.save_adapter(make_wrapped(**fields), tmp_path)
    assert quantlora.check_vllm(tmp_path) == []


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"rank_pattern": {"q_proj": 2}}, "one scale for all layers"),
        ({"alpha_pattern": {"q_proj": 2}}, "one scale for all layers"),
        ({"r": 16, "rank_pattern": {"q_proj": 20}}, "--max-lora-rank 20"),
    ],
    ids=str,
)
def test_what_it_refuses_is_named(make_wrapped, tmp_path, fields, word):
    quantlora.save_adapter(make_wrapped(**fields), tmp_path)
    assert word in " ".join(quantlora.check_vllm(tmp_path))


def test_rank_is_held_against_vllm_s_option(make_wrapped, tmp_path):
    quantlora.save_adapter(make_wrapped(r=8), tmp_path)
    assert "its rank is 8" in quantlora.check_vllm(tmp_path, max_lora_rank=4)[0]
    assert quantlora.check_vllm(tmp_path, max_lora_rank=8) == []


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, ""),
        ({"target_parameters": ["experts.down_proj"]}, "takes an adapter on one of gate_up_proj"),
        ({"target_parameters": ["gate.weight"]}, "gate_up_proj and down_proj of experts only"),
        ({"r": 32}, "its rank is 32"),
    ],
    ids=str,
)
def test_adapters_on_experts_are_taken_where_both_stacks_have_one(fields, word, tmp_path):
    given = {"target_modules": ["q_proj"], "target_parameters": BOTH, "r": 4, **fields}
    quantlora.save_adapter(quantlora.wrap(mixtral(), **given), tmp_path)
    reasons = quantlora.check_vllm(tmp_path)
    assert word in " ".join(reasons)
    assert bool(reasons) == bool(word)
