"""Configs of PEFT's, taken as they are: each field is honoured or refused by its name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from torch import nn

import quantlora
from quantlora import ConfigError
from quantlora.config.peft_config import from_peft
from quantlora.config.usual_targets import USUAL_TARGETS
from quantlora.testing.models import tiny_llama

peft = pytest.importorskip("peft")

#: A value of each field that is not its default; None: it has no meaning by itself.
OTHERS: dict[str, Any] = {
    "task_type": "CAUSAL_LM", "auto_mapping": None, "peft_version": None, "peft_type": None,
    "base_model_name_or_path": "a/b", "revision": "main", "inference_mode": True, "r": 3,
    "target_modules": ["up_proj"], "exclude_modules": ["v_proj"], "lora_alpha": 5,
    "lora_dropout": 0.1, "fan_in_fan_out": True, "bias": "all", "use_rslora": True,
    "modules_to_save": ["norm"], "init_lora_weights": "gaussian", "layers_to_transform": [0],
    "layers_pattern": None, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 2},
    "megatron_core": None, "trainable_token_indices": [1], "use_dora": True, "use_qalora": True,
    "qalora_group_size": None, "lora_bias": True, "target_parameters": ["w"],
    "ensure_weight_tying": True,
    "loftq_config": None, "eva_config": None,  # only with an initializer: below
    "layer_replication": [[0, 1]], "alora_invocation_tokens": [1], "megatron_config": {"a": 1},
}  # fmt: skip
FIELDS = [field.name for field in dataclasses.fields(peft.LoraConfig)]


def config(**fields: Any) -> Any:
    return peft.LoraConfig(**{"target_modules": ["q_proj"], **fields})


HONOURED = [n for n in OTHERS if OTHERS[n] is not None and n in vars(quantlora.LoraConfig())]


@pytest.mark.parametrize("name", HONOURED)
def test_a_field_that_is_ours_too_is_honoured(name: str) -> None:
    ours = from_peft(config(**{name: OTHERS[name]}), "llama")
    assert getattr(ours, name) == OTHERS[name]


@pytest.mark.parametrize("name", [n for n in FIELDS if OTHERS.get(n, 1) and n not in HONOURED])
def test_every_other_field_is_refused(name: str) -> None:
    fields = {**config().to_dict(), name: OTHERS.get(name, {"setting": 1})}
    with pytest.raises(ConfigError, match=rf"the config sets {name}, which"):
        from_peft(fields, "llama")


def test_a_runtime_setting_that_to_dict_leaves_out_is_refused() -> None:
    given = config(runtime_config=peft.LoraRuntimeConfig(ephemeral_gpu_offload=True))
    with pytest.raises(ConfigError, match="ephemeral_gpu_offload"):
        from_peft(given, "llama")


def test_settings_of_an_initializer_come_with_it() -> None:
    loftq = config(init_lora_weights="loftq", loftq_config=peft.LoftQConfig(loftq_bits=2))
    assert from_peft(loftq, "llama").loftq_config == {"loftq_bits": 2, "loftq_iter": 1}
    eva = config(init_lora_weights="eva", eva_config=peft.EvaConfig(rho=3.0))
    assert from_peft(eva, "llama").eva_config["rho"] == 3.0
    assert from_peft(config(), "llama").loftq_config is None


def test_the_usual_targets_are_pefts() -> None:
    theirs = peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    assert theirs == USUAL_TARGETS


def test_without_targets_the_layers_are_pefts() -> None:
    theirs = peft.get_peft_model(tiny_llama(), peft.LoraConfig(r=4))
    ours = quantlora.wrap(tiny_llama(), peft.LoraConfig(r=4))
    adapted = {
        name.removeprefix("base_model.model.")
        for name, module in theirs.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    assert {path for path, _ in quantlora.lora_layers(ours)} == adapted


def test_without_targets_an_unknown_type_of_model_asks_for_them() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ConfigError, match='use target_modules="all-linear"'):
        quantlora.wrap(model, peft.LoraConfig())


def test_another_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="the config is for IA3"):
        quantlora.wrap(tiny_llama(), peft.IA3Config())


def test_the_content_of_a_config_file_will_do() -> None:
    fields = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}
    model = quantlora.wrap(tiny_llama(), fields)
    assert {layer.r["default"] for _, layer in quantlora.lora_layers(model)} == {2}


def test_explain_takes_it_too() -> None:
    given = peft.LoraConfig(target_modules=["q_proj"])
    assert {
        row.path.rpartition(".")[2] for row in quantlora.explain(tiny_llama(), given).wrapped
    } == {"q_proj"}
    problem = quantlora.explain(tiny_llama(), peft.IA3Config()).problems
    assert "the config is for IA3" in problem[0]


def test_add_adapter_honours_the_first_values() -> None:
    model: Any = quantlora.wrap(tiny_llama(), r=2)
    model.add_adapter(config(r=2, init_lora_weights="gaussian"), "theirs")
    assert quantlora.known_adapter(model, "theirs").init_lora_weights == "gaussian"


def test_add_adapter_takes_pefts_order_too() -> None:
    model: Any = quantlora.wrap(tiny_llama(), r=2)
    model.add_adapter("theirs", config(r=3))
    assert quantlora.known_adapter(model, "theirs").r == 3
