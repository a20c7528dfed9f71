"""`plain_adapter`: the update of an adapter's files as A and B with every scale in B."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import quantlora
from quantlora.errors import AdapterFileError
from quantlora.testing.models import tiny_llama
from tests.tools.versions import transformers_5


def trained(**settings: object) -> nn.Module:
    model = quantlora.wrap(tiny_llama(), **settings)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def test_the_products_are_the_layers_updates(tmp_path):
    model = trained(r=4, use_rslora=True, rank_pattern={"v_proj": 2}, alpha_pattern={"q_proj": 3})
    quantlora.save_adapter(model, tmp_path)
    found = quantlora.plain_adapter(tmp_path)
    layers = dict(quantlora.lora_layers(model))
    assert found.layers.keys() == layers.keys()
    for path, layer in layers.items():
        A, B = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
        wanted = layer.scaling["default"] * (B @ A)
        factors = found.layers[path]
        assert factors.A.shape[0] == 4
        torch.testing.assert_close(
            factors.B.double() @ factors.A.double(), wanted, rtol=1e-6, atol=1e-7
        )


@transformers_5
def test_a_stack_has_factors_for_each_expert(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 32}
    config = MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)
    model = quantlora.wrap(
        MixtralForCausalLM(config), r=2, lora_alpha=6, rank_pattern={"down_proj": 3}
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    quantlora.save_adapter(model, tmp_path)
    found = quantlora.plain_adapter(tmp_path).stacks
    experts = model.model.layers[0].mlp.experts
    for name, wanted in experts.deltas("default").items():
        factors = found[f"model.layers.0.mlp.experts.{name}"]
        torch.testing.assert_close(factors.B @ factors.A, wanted)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"use_dora": True}, "it has DoRA, and there is room"),
        ({"bias": "lora_only"}, "it has trained biases"),
        ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, "modules trained in full"),
    ],
)
def test_what_is_more_is_refused_by_name(tmp_path, settings, why):
    quantlora.save_adapter(trained(r=4, **settings), tmp_path)
    with pytest.raises(AdapterFileError, match=why):
        quantlora.plain_adapter(tmp_path)


def test_one_for_a_changed_base_is_refused(tmp_path):
    model = quantlora.wrap(tiny_llama(), r=4, init_lora_weights="pissa")
    quantlora.save_adapter(model, tmp_path, convert=False)
    with pytest.raises(AdapterFileError, match="'pissa' has changed"):
        quantlora.plain_adapter(tmp_path)
