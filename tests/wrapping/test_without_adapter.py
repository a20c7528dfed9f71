"""Experts without an adapter are named, with their share of the parameters."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import quantlora
from quantlora.errors import AdapterWarning
from quantlora.layers.experts import LoraExperts
from quantlora.testing.models import tiny_llama
from tests.compatibility.families import classes
from tests.compatibility.tiny_config import tiny_config
from tests.tools.expert_models import BOTH, MODELS, mixtral, qwen3_moe
from tests.tools.versions import transformers_5

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
def test_all_linear_means_the_experts_too_and_peft_finds_them(name: str, tmp_path: Path) -> None:
    """The file names them, so PEFT's reader finds the same."""
    model = MODELS[name]()
    plain = copy.deepcopy(model)
    assert said(model, init_lora_weights=False) == []
    experts = [one for _, one in quantlora.lora_layers(model) if isinstance(one, LoraExperts)]
    assert len(experts) == 2
    quantlora.save_adapter(model, tmp_path)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert fields["target_parameters"] == BOTH
    assert "target_experts" not in fields
    theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    ids = torch.arange(12)[None]
    assert torch.allclose(model.eval()(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["normalfloat", "bitsandbytes_4bit"])
def test_a_backend_packs_all_of_a_mixture(backend: str) -> None:
    """Nothing is left float but embeddings, head, router and norms."""
    model = qwen3_moe()
    assert said(model, backend=backend) == []
    floats = {name for name, one in model.named_parameters() if one.is_floating_point()}
    names = {name.split(".")[-2] for name in floats if "lora_" not in name}
    assert not {"experts", "q_proj", "o_proj"} & names
    model(torch.arange(12)[None]).logits.sum().backward()


@pytest.mark.parametrize("fields", [{"use_dora": True}, {"init_lora_weights": "orthogonal"}])
def test_all_linear_names_the_experts_that_cannot_have_the_adapter(fields: Any) -> None:
    model = mixtral()
    wanted = share_of(model, "gate_up_proj", "down_proj")
    (message,) = said(model, **fields)
    assert f"hold {wanted:.0%} of the model's parameters" in message
    assert "for they cannot have" in message


def test_experts_that_a_backend_cannot_pack_are_adapted_and_named() -> None:
    (message,) = said(mixtral(), backend="bitsandbytes_8bit")
    assert "get adapters and stay float among packed layers, 61% of" in message
    assert "normalfloat" in message


def test_a_second_adapter_under_all_linear_gets_the_packed_experts_too() -> None:
    model = mixtral()
    said(model, backend="normalfloat")
    assert said(model, adapter_name="second") == []
    experts = dict(quantlora.lora_layers(model))["model.layers.0.mlp.experts"]
    assert experts.adapters == ("default", "second")


def test_what_is_named_is_what_is_left() -> None:
    (message,) = said(mixtral(), target_modules="all-linear", target_parameters=BOTH[1:])
    assert "in gate_up_proj, which are no layers" in message


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": "all-linear", "target_parameters": BOTH},
        {"target_modules": ["q_proj"]},
        {"target_modules": "all-linear", "exclude_modules": ["experts"]},
        {"target_modules": "all-linear", "target_experts": False},
    ],
)
def test_nothing_is_said_of_experts_that_are_adapted_or_left_out_by_name(fields: Any) -> None:
    assert said(mixtral(), **fields) == []


def test_experts_that_stay_float_among_packed_layers_are_named() -> None:
    (message,) = said(mixtral(), backend="normalfloat", target_modules=["q_proj"])
    assert SHARE in message
    assert "they stay as they are (float32)" in message


def test_explain_shows_them_with_their_share() -> None:
    wrapped = {row.path for row in quantlora.explain(mixtral()).wrapped}
    found = quantlora.explain(mixtral(), use_dora=True)
    rows = [row for row in found.rows if row.path.endswith("experts")]
    assert len(rows) == 2
    assert {row.path for row in rows} <= wrapped
    assert all("30.4% of the parameters" in row.reason and not row.wrapper for row in rows)
    assert any(SHARE in warning for warning in found.warnings)


@transformers_5
@pytest.mark.parametrize("family", ["jetmoe"])
def test_families_with_another_layout_are_named_too(family: str) -> None:
    config_class, model_class = classes(family)
    model: Any = model_class
    assert any("hold" in one for one in said(model._from_config(tiny_config(config_class))))


def test_a_dense_model_is_wrapped_without_a_word() -> None:
    assert said(tiny_llama()) == []
