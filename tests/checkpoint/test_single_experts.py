"""Adapters on experts one by one, read and written, against PEFT on the same file."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import quantlora
from quantlora.errors import AdapterFileError, ConfigError
from tests.tools.expert_models import SIZES, gpt_oss, mixtral, qwen3_moe

pytest.importorskip("transformers.conversion_mapping")  # Transformers 5

IDS = torch.arange(24).reshape(2, 12)
#: The model, its layers' names in a file of Transformers 4: where, gate, up, down.
FAMILIES: dict[str, tuple[Any, str, tuple[str, str, str]]] = {
    "mixtral": (mixtral, "block_sparse_moe", ("w1", "w3", "w2")),
    "qwen3_moe": (qwen3_moe, "mlp", ("gate_proj", "up_proj", "down_proj")),
}
HIDDEN, INNER = SIZES["hidden_size"], SIZES["intermediate_size"]


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(IDS).logits
    return found


def peft_model(plain: Any, folder: Path) -> Any:
    import peft

    return peft.PeftModel.from_pretrained(copy.deepcopy(plain), folder)


def old_file(folder: Path, family: str, projections: Any, experts: range = range(4)) -> None:
    """What PEFT with Transformers 4 has written: adapters of rank 3 and the scale 2."""
    _, outer, (_, _, down) = FAMILIES[family]
    generator, tensors = torch.Generator().manual_seed(1), {}
    for layer in range(2):
        for expert in experts:
            for name in projections:
                sizes = (HIDDEN, INNER) if name == down else (INNER, HIDDEN)
                path = f"base_model.model.model.layers.{layer}.{outer}.experts.{expert}.{name}"
                tensors[f"{path}.lora_A.weight"] = torch.randn(3, sizes[1], generator=generator) / 4
                tensors[f"{path}.lora_B.weight"] = torch.randn(sizes[0], 3, generator=generator) / 4
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": [*projections]}
    (folder / "adapter_config.json").write_text(json.dumps(fields))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_of_transformers_4_computes_what_peft_makes_of_it(
    family: str, tmp_path: Path
) -> None:
    make, _, names = FAMILIES[family]
    old_file(tmp_path, family, names)
    plain = make()
    model = quantlora.load_adapter(copy.deepcopy(plain), tmp_path)
    wanted = logits(peft_model(plain, tmp_path))
    assert float((wanted - logits(plain)).abs().max()) > 0.1
    assert float((logits(model) - wanted).abs().max()) < 1e-5


def test_experts_and_projections_without_an_adapter_stay_as_they_are(tmp_path: Path) -> None:
    """PEFT takes neither; the update is written out."""
    old_file(tmp_path, "mixtral", ["w3"], range(1, 3))
    model, plain = quantlora.load_adapter(mixtral(), tmp_path), mixtral()
    for layer, block in enumerate(plain.model.layers):
        for expert in (1, 2):
            key = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.w3"
            file = load_file(tmp_path / "adapter_model.safetensors")
            update = 2 * file[f"{key}.lora_B.weight"] @ file[f"{key}.lora_A.weight"]
            block.mlp.experts.gate_up_proj.data[expert, INNER:] += update
    assert float((logits(model) - logits(plain)).abs().max()) < 1e-5


def test_an_expert_that_the_model_has_not_is_an_error(tmp_path: Path) -> None:
    old_file(tmp_path, "mixtral", ["w2"], range(3, 5))
    with pytest.raises(AdapterFileError, match=r"experts\.4\.w2 lacks A or B, or is no expert"):
        quantlora.load_adapter(mixtral(), tmp_path)


def test_a_router_that_was_a_layer_gets_its_adapter(tmp_path: Path) -> None:
    path = "base_model.model.model.layers.{}.block_sparse_moe.gate.lora_{}.weight"
    tensors = {path.format(i, "A"): torch.randn(2, HIDDEN) for i in range(2)}
    tensors |= {path.format(i, "B"): torch.randn(4, 2) for i in range(2)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["gate"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    plain, model = mixtral(), quantlora.load_adapter(mixtral(), tmp_path)
    for i, block in enumerate(plain.model.layers):
        block.mlp.gate.weight.data += tensors[path.format(i, "B")] @ tensors[path.format(i, "A")]
    assert float((logits(model) - logits(plain)).abs().max()) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("portable", [False, True])
def test_written_one_by_one_peft_and_we_compute_the_same(
    family: str, portable: bool, tmp_path: Path
) -> None:
    make, outer, (gate, *_) = FAMILIES[family]
    model = quantlora.wrap(make(), r=2, init_lora_weights=False)
    quantlora.save_adapter(model, tmp_path, experts="per_expert", portable=portable)
    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert f"base_model.model.model.layers.1.{outer}.experts.3.{gate}.lora_A.weight" in keys
    for again in (quantlora.load_adapter(make(), tmp_path), peft_model(make(), tmp_path)):
        assert float((logits(again) - logits(model)).abs().max()) < 1e-5
    assert quantlora.check_vllm(tmp_path) == []


def test_gate_and_up_that_were_joined_come_apart_with_their_own_rank(tmp_path: Path) -> None:
    old_file(tmp_path, "mixtral", FAMILIES["mixtral"][2])
    model = quantlora.load_adapter(mixtral(), tmp_path)
    quantlora.save_adapter(model, tmp_path / "again", experts="per_expert")
    before, after = (
        load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, tmp_path / "again")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_without_names_for_single_experts_it_is_an_error(tmp_path: Path) -> None:
    model = quantlora.wrap(gpt_oss(), r=2)
    with pytest.raises(AdapterFileError, match="all experts in one tensor"):
        quantlora.save_adapter(model, tmp_path, experts="per_expert")
    with pytest.raises(ConfigError, match="experts must be 'stacked' or 'per_expert'"):
        quantlora.save_adapter(model, tmp_path, experts="single")
