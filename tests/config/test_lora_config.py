"""`LoraConfig`: PEFT's fields and meanings, checked when it is made."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import peft
import pytest

from quantlora import ConfigError, LoraConfig
from quantlora.checkpoint.config_file import config_from
from quantlora.suggestions import FIELDS_ELSEWHERE


def test_the_fields_have_pefts_names_and_defaults() -> None:
    """All but two: no target is asked for, and QA-LoRA's group comes from the quantizer."""
    theirs = peft.LoraConfig(target_modules="all-linear").to_dict()
    ours = dataclasses.asdict(LoraConfig())
    assert ours.pop("use_variant") is None  # the only one of our own: for the variants of plugins
    different = {name for name in ours.keys() & theirs if ours[name] != theirs[name]}
    assert different <= {"loftq_config", "qalora_group_size", "peft_type", "inference_mode"}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "rank 0": ({"r": 0}, "r must be a positive integer, got 0"),
    "negative rank": ({"r": -1}, "r must be a positive integer, got -1"),
    "rank as text": ({"r": "8"}, "r must be int, got '8'"),
    "rank as bool": ({"r": True}, "r must be int, got True"),
    "rank 0 by pattern": ({"rank_pattern": {"q": 0}}, r"rank_pattern\['q'\] must be a positive"),
    "alpha nan": ({"lora_alpha": math.nan}, "lora_alpha must be a finite number, got nan"),
    "alpha by pattern": ({"alpha_pattern": {"q": math.inf}}, r"alpha_pattern\['q'\] must be"),
    "dropout 1": ({"lora_dropout": 1.0}, r"lora_dropout must be in \[0, 1\), got 1.0"),
    "dropout -1": ({"lora_dropout": -1.0}, r"lora_dropout must be in \[0, 1\), got -1.0"),
    "bias": ({"bias": "some"}, "bias must be one of none, all, lora_only, got 'some'"),
    "targets": ({"target_modules": 3}, "target_modules must be .* got 3"),
    "init": ({"init_lora_weights": None}, "init_lora_weights must be bool | str, got None"),
    "regex": ({"target_modules": "*q"}, r"target_modules: '\*q' is not a valid regular expression"),
    "rank regex": ({"rank_pattern": {"(q": 2}}, r"rank_pattern: '\(q' is not a valid regular"),
    "two variants": (
        {"use_dora": True, "use_qalora": True},
        "use_dora and use_qalora cannot be combined: choose one",
    ),
    "other method": ({"peft_type": "IA3"}, "peft_type 'IA3' is not LoRA"),
    "pattern alone": ({"layers_pattern": "h"}, "layers_pattern needs layers_to_transform"),
    "indices with a regex": (
        {"layers_to_transform": 1, "target_modules": ".*q"},
        "layers_to_transform needs target_modules as a list",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_refused(case: str) -> None:
    fields, text = WRONG[case]
    with pytest.raises(ConfigError, match=text):
        LoraConfig(**fields)


def test_an_unknown_field_is_refused_with_near_names() -> None:
    with pytest.raises(ConfigError, match="unknown LoraConfig field 'lora_aplha'") as caught:
        LoraConfig.from_fields({"r": 8, "lora_aplha": 16})
    assert "Did you mean 'lora_alpha'" in str(caught.value)


@pytest.mark.parametrize(("typed", "meant"), FIELDS_ELSEWHERE.items())
def test_a_field_by_another_name_is_answered_by_ours(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean {meant!r}"):
        LoraConfig.from_fields({typed: 1})


@pytest.mark.parametrize(
    "given", [{"v_proj", "q_proj"}, ("v_proj", "q_proj"), ["q_proj", "v_proj"]]
)
def test_targets_may_be_a_set_or_a_tuple(given: Any) -> None:
    config = LoraConfig(target_modules=given, exclude_modules=given)
    assert config.target_modules == config.exclude_modules == ["q_proj", "v_proj"]


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 4.0), (True, 8.0)])
def test_the_scaling_is_pefts(rslora: bool, scaling: float) -> None:
    assert LoraConfig(use_rslora=rslora).scaling(4, 16) == scaling


@pytest.mark.parametrize(
    ("fields", "variant"),
    [({}, "lora"), ({"use_dora": True}, "dora"), ({"use_qalora": True}, "qalora")],
)
def test_the_flags_choose_the_variant(fields: dict[str, bool], variant: str) -> None:
    assert LoraConfig(**fields).variant == variant


def test_every_field_that_peft_writes_is_read() -> None:
    """With PEFT's defaults, and those of its fields that have a meaning here."""
    theirs = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj"], use_rslora=True, rank_pattern={"q_proj": 2}
    )
    fields = {k: list(v) if isinstance(v, set) else v for k, v in theirs.to_dict().items()}
    ours = vars(config_from(fields, "adapter_config.json"))
    different = {name for name in ours.keys() & fields if ours[name] != fields[name]}
    assert different == {"loftq_config"}


@pytest.mark.parametrize(
    ("variant", "fields"),
    [
        ("lora", {}),
        ("dora", {"use_dora": True}),
        ("of_a_plugin", {"use_variant": "of_a_plugin"}),
        ("rslora", {"use_variant": "rslora"}),  # use_rslora is no variant: it scales any
    ],
)
def test_the_fields_of_a_variant_choose_it(variant: str, fields: dict[str, Any]) -> None:
    assert LoraConfig.variant_fields(variant) == fields
    assert LoraConfig(**fields).variant == variant
