"""Which layers are targeted: the same as in PEFT, with PEFT as the oracle."""

from __future__ import annotations

import re
from typing import Any

import peft
import pytest
from hypothesis import given, settings, strategies as st
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, GPT2Config, GPT2LMHeadModel

from quantlora import LoraConfig
from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.config.patterns import by_pattern
from quantlora.config.picked_paths import targeted
from quantlora.testing.models import tiny_llama
from quantlora.wrapping.targets import Search, find_targets

SEGMENTS = ["layers", "h", "0", "1", "11", "q_proj", "k_proj", "xq_proj", "mlp", "experts", "head"]
segments = st.sampled_from(SEGMENTS)
paths = st.lists(segments, min_size=1, max_size=6).map(".".join)
names = st.lists(st.one_of(segments, paths), min_size=1, max_size=3)
regexes = st.sampled_from(
    [r".*q_proj", r".*\.(q|k)_proj", r"layers\.\d+\..*", r"q_proj", r".*\.0\..*", r"(?!.*mlp).*"]
)
indices = st.one_of(st.none(), st.integers(0, 2), st.lists(st.integers(0, 11), max_size=3))
pattern = st.one_of(
    st.none(), st.sampled_from(["layers", "h", "experts"]), st.just(["h", "layers"])
)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Fields that both sides accept."""
    fields: dict[str, Any] = {"target_modules": draw(st.one_of(names, regexes))}
    if isinstance(fields["target_modules"], list):
        fields["layers_to_transform"] = draw(indices)
    if fields.get("layers_to_transform") is not None:
        fields["layers_pattern"] = draw(pattern)
    fields["exclude_modules"] = draw(st.one_of(st.none(), names, regexes))
    fields["modules_to_save"] = draw(st.one_of(st.none(), st.just(["head"]), st.just(["mlp"])))
    return fields


def chosen_by_peft(path: str, fields: dict[str, Any]) -> bool:
    """PEFT gives True, a match, or an object that says "excluded"."""
    found = check_target_module_exists(peft.LoraConfig(**fields), path)
    return found is True or isinstance(found, re.Match)


@settings(max_examples=600, deadline=None)
@given(path=paths, fields=configs())
def test_a_path_is_targeted_as_in_peft(path: str, fields: dict[str, Any]) -> None:
    assert targeted(path, LoraConfig(**fields)) == chosen_by_peft(path, fields)


@settings(max_examples=300, deadline=None)
@given(
    path=paths,
    patterns=st.dictionaries(
        st.one_of(segments, paths, st.just(r".*\.0\..*"), st.just(r"(q|k)_proj")),
        st.integers(1, 8),
        max_size=3,
    ),
)
def test_ranks_by_pattern_are_as_in_peft(path: str, patterns: dict[str, int]) -> None:
    theirs = patterns.get(get_pattern_key(patterns.keys(), path), 99)
    assert by_pattern(path, patterns, 99) == theirs


def gpt2() -> nn.Module:
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 32, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes))


def bert_classifier() -> nn.Module:
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32, "vocab_size": 32}
    return AutoModelForSequenceClassification.from_config(
        BertConfig(**sizes, num_attention_heads=2)
    )


@pytest.mark.parametrize("make", [tiny_llama, gpt2, bert_classifier])
def test_all_linear_is_as_in_peft(make: Any) -> None:
    """Every linear layer but the output embeddings, or a classifier's head."""
    model = make()
    config = peft.LoraConfig(target_modules="all-linear", task_type="SEQ_CLS")
    theirs = _maybe_include_all_linear_layers(config, model).target_modules
    ours = find_targets(Search(AdaptedModel(model), LoraConfig(target_modules="all-linear")))
    assert {target.path for target in ours} == theirs


def paths_of(model: nn.Module, **fields: Any) -> list[str]:
    return [
        target.path for target in find_targets(Search(AdaptedModel(model), LoraConfig(**fields)))
    ]


def test_all_linear_finds_wrapped_layers_again(wrapped: Any, model: nn.Module) -> None:
    before = paths_of(model, target_modules="all-linear")
    assert paths_of(wrapped(), target_modules="all-linear") == before


def test_exclude_wins_over_all_linear(model: nn.Module) -> None:
    found = paths_of(model, target_modules="all-linear", exclude_modules=["head", "q_proj"])
    assert found == [f"layers.{i}.{name}" for i in (0, 1) for name in ("up_proj", "down_proj")]


def test_the_targets_come_in_the_models_order(model: nn.Module) -> None:
    found = paths_of(model, target_modules=["down_proj", "q_proj"])
    assert found == [f"layers.{i}.{name}" for i in (0, 1) for name in ("q_proj", "down_proj")]


def test_nothing_inside_a_lora_layer_is_targeted(wrapped: Any) -> None:
    found = paths_of(wrapped(), target_modules=r".*")[1:]
    assert not [path for path in found if "lora_" in path or "base_layer" in path]


def test_rank_and_alpha_follow_their_patterns(model: nn.Module) -> None:
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "up_proj"],
        rank_pattern={r"layers\.1\..*": 2, "q_proj": 1},
        alpha_pattern={"up_proj": 16},
    )
    found = find_targets(Search(AdaptedModel(model), config))
    assert [(t.r, t.lora_alpha) for t in found] == [(1, 8), (4, 16), (2, 8), (2, 16)]


def test_the_projection_that_attention_reads_and_never_calls_is_a_target() -> None:
    """`nn.MultiheadAttention` multiplies by its weights itself."""
    model = nn.TransformerEncoderLayer(8, 2, 16)
    linear = ["self_attn.out_proj", "linear1", "linear2"]
    assert paths_of(model, target_modules="all-linear") == linear
