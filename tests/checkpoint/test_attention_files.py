"""Files of adapters on `nn.MultiheadAttention`: PEFT's, both ways."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import quantlora
from quantlora.errors import AdapterWarning

X = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
FIELDS: dict[str, Any] = {"r": 3, "lora_alpha": 5, "init_lora_weights": False}
TARGETS = [["attn"], ["attn", "linear"], ["attn", "out_proj"]]


def base() -> nn.ModuleDict:
    torch.manual_seed(0)
    attn = nn.MultiheadAttention(32, 4, batch_first=True)
    return nn.ModuleDict({"attn": attn, "linear": nn.Linear(32, 32)})


def output(model: Any) -> Tensor:
    with torch.no_grad():
        return model["linear"](model["attn"](X, X, X)[0])


def close(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("patterns", [{}, {"rank_pattern": {"attn": 2}}], ids=str)
@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_a_file_of_pefts_computes_the_same(
    targets: list[str], patterns: dict[str, Any], tmp_path: Path
) -> None:
    config = peft.LoraConfig(target_modules=targets, lora_dropout=0.1, **FIELDS, **patterns)
    theirs = peft.get_peft_model(base(), config).eval()
    theirs.save_pretrained(tmp_path)
    close(output(quantlora.load_adapter(base(), tmp_path)), output(theirs.base_model.model))


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")  # of the part it does not use
@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_a_file_of_ours_computes_the_same_in_peft(targets: list[str], tmp_path: Path) -> None:
    ours = quantlora.wrap(base(), target_modules=targets, **FIELDS)
    quantlora.save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(base(), tmp_path)
    close(output(theirs.base_model.model), output(ours))


def test_the_keys_are_pefts(tmp_path: Path) -> None:
    config = peft.LoraConfig(target_modules=["attn"], **FIELDS)
    peft.get_peft_model(base(), config).save_pretrained(tmp_path / "theirs")
    ours = quantlora.wrap(base(), target_modules=["attn"], **FIELDS)
    quantlora.save_adapter(ours, tmp_path / "ours")
    files = [load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours")]
    shapes = [{key: one.shape for key, one in file.items()} for file in files]
    assert shapes[0] == shapes[1]


def test_a_file_is_loaded_beside_another_adapter_of_the_attention(tmp_path: Path) -> None:
    ours = quantlora.wrap(base(), target_modules=["attn"], **FIELDS)
    wanted = output(ours)
    quantlora.save_adapter(ours, tmp_path)
    quantlora.wrap(ours, adapter_name="other", target_modules=["attn"], **FIELDS)
    quantlora.load_adapter(ours, tmp_path, "again")
    close(output(ours), wanted)


def test_parts_that_are_named_by_themselves_come_back_from_their_file(tmp_path: Path) -> None:
    parts = {"target_modules": ["attn.out_proj"], "target_parameters": ["attn.in_proj_weight"]}
    ours = quantlora.wrap(base(), **parts, **FIELDS)
    quantlora.save_adapter(ours, tmp_path)
    close(output(quantlora.load_adapter(base(), tmp_path)), output(ours))


def test_names_of_a_data_parallel_model_are_read(tmp_path: Path) -> None:
    whole = nn.ModuleDict({"module": base()})
    quantlora.wrap(whole, target_modules=["attn"], **FIELDS)
    quantlora.save_adapter(whole, tmp_path)
    again = quantlora.load_adapter(base(), tmp_path)
    close(output(again), output(whole["module"]))


def test_vllm_is_said_to_have_no_such_adapter(tmp_path: Path) -> None:
    quantlora.save_adapter(quantlora.wrap(base(), target_modules=["attn"], **FIELDS), tmp_path)
    assert any("MultiheadAttention" in one for one in quantlora.check_vllm(tmp_path))


def test_out_proj_alone_is_said_to_have_no_effect_in_peft(tmp_path: Path) -> None:
    parts = {"target_modules": ["attn.out_proj"], "target_parameters": ["attn.in_proj_weight"]}
    with pytest.warns(AdapterWarning, match="PEFT gives attn.*out_proj an adapter"):
        quantlora.save_adapter(quantlora.wrap(base(), **parts, **FIELDS), tmp_path / "ours")
    theirs = peft.get_peft_model(base(), peft.LoraConfig(**parts, **FIELDS))
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.warns(AdapterWarning, match="PEFT gives attn.*out_proj an adapter"):
        ours = quantlora.load_adapter(base(), tmp_path / "theirs")
    nn.init.zeros_(ours["attn"].base_layer.out_proj.lora_B["default"].weight)
    close(output(ours), output(theirs.base_model.model))


@pytest.mark.parametrize(("version", "later"), [("0.21.9", 0), ("0.22.0.dev0@abc", 1), ("1.0", 1)])
def test_a_later_peft_is_warned_of(version: str, later: int, tmp_path: Path) -> None:
    config = peft.LoraConfig(target_modules=["attn"], **FIELDS)
    peft.get_peft_model(base(), config).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "peft_version": version}))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        quantlora.load_adapter(base(), tmp_path)
    assert len([one for one in said if "attn.out_proj counts twice" in str(one.message)]) == later


class Two(nn.Module):
    """Two parameters and a layer, all to be adapted."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.p, self.q = (nn.Parameter(torch.randn(8, 8)) for _ in range(2))
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x @ self.p.t()).tanh() @ self.q.t())


def test_a_layer_beside_several_adapted_parameters_is_found_both_ways(tmp_path: Path) -> None:
    fields = {"target_modules": ["inner"], "target_parameters": ["two.p", "two.q"], **FIELDS}
    x = torch.linspace(-1, 1, 24).reshape(3, 8)
    theirs = peft.get_peft_model(nn.ModuleDict({"two": Two()}), peft.LoraConfig(**fields))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = quantlora.load_adapter(nn.ModuleDict({"two": Two()}), tmp_path / "theirs")
    wanted = theirs.base_model.model["two"](x)
    close(ours["two"](x), wanted)
    quantlora.save_adapter(ours, tmp_path / "ours")
    back = peft.PeftModel.from_pretrained(nn.ModuleDict({"two": Two()}), tmp_path / "ours")
    close(back.base_model.model["two"](x), wanted)


def test_the_weight_of_out_proj_is_a_parameter_like_others(tmp_path: Path) -> None:
    names = ["attn.in_proj_weight", "attn.out_proj.weight"]
    ours = quantlora.wrap(base(), target_modules=[], target_parameters=names, **FIELDS)
    as_layer = {"target_modules": ["attn.out_proj"], "target_parameters": names[:1]}
    other = quantlora.wrap(base(), **as_layer, **FIELDS)
    copied = zip(ours.parameters(), other.parameters(), strict=True)
    assert all(one.shape == two.shape and two.data.copy_(one) is not None for one, two in copied)
    close(output(ours), output(other))
    quantlora.save_adapter(ours, tmp_path)
    close(output(quantlora.load_adapter(base(), tmp_path)), output(ours))


@pytest.mark.parametrize("targets", [["out_proj"], ["self_attn"]])
def test_an_output_projection_that_peft_passes_by_is_named(targets, tmp_path):
    model = nn.TransformerEncoderLayer(16, 2, 16)
    quantlora.wrap(model, r=2, target_modules=targets)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quantlora.save_adapter(model, tmp_path)
    named = any("self_attn.out_proj" in str(one.message) for one in caught)
    assert named is (targets == ["out_proj"])
