"""PEFT as the oracle: one file, one update, on the layers of a real GPTQ checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import quantlora
from plugins.gptq.tests.gptq_checkpoint import Recipe, write_checkpoint
from plugins.gptq.tests.gptq_loading import load, needs_gptqmodel, tokens

pytestmark = needs_gptqmodel

#: Inputs of 128 and 256: PEFT's factor differs between the layers.
TARGETS = ["q_proj", "down_proj"]
FIELDS: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 8,
    "use_qalora": True,
    "qalora_group_size": 32,
    "target_modules": TARGETS,
    "init_lora_weights": False,
}


@pytest.fixture(autouse=True)
def _uncompiled() -> Iterator[None]:
    """The library's own forward runs here, and compiles itself the first time, for a minute."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("gptq")
    write_checkpoint(target, Recipe(scales=torch.float32))
    return target


def fresh(folder: Path) -> nn.Module:
    return load(folder, kernel="gptq_torch").eval()


@torch.no_grad()
def updates(model: nn.Module) -> dict[str, Tensor]:
    """What the adapter adds to the output of each of its layers, on the same input."""
    found = {}
    for path, layer in model.named_modules():
        if hasattr(layer, "lora_A") and "default" in layer.lora_A:
            x = torch.randn(3, 5, layer.in_features, generator=torch.Generator().manual_seed(0))
            name = path.removeprefix("base_model.model.")
            found[name] = layer(x) - base_product(layer, x)
    return found


def base_product(layer: Any, x: Tensor) -> Tensor:
    if isinstance(layer, quantlora.LoraLayer):
        bias = layer.quantizer.bias(layer.base_layer)
        return nn.functional.linear(x, layer.dequantize().to(x.dtype), bias)
    return layer.quant_linear_module(x)


def agree(theirs: nn.Module, ours: nn.Module) -> bool:
    expected, found = updates(theirs), updates(ours)
    assert expected.keys() == found.keys()
    assert len(found) == 2
    errors = [(found[key] - one).norm() / one.norm() for key, one in expected.items()]
    return max(errors) < 1e-4


def test_a_file_of_pefts_computes_the_same_here(folder: Path, tmp_path: Path) -> None:
    theirs = peft.get_peft_model(fresh(folder), peft.LoraConfig(**FIELDS)).eval()
    theirs.save_pretrained(str(tmp_path))
    ours = fresh(folder)
    quantlora.load_adapter(ours, tmp_path)
    assert agree(theirs, ours)
    with torch.no_grad():
        logits = [model(input_ids=tokens()).logits for model in (theirs, ours)]
    assert torch.allclose(*logits, rtol=1e-3, atol=1e-3)


def test_a_file_of_ours_computes_the_same_in_peft(folder: Path, tmp_path: Path) -> None:
    ours = quantlora.wrap(fresh(folder), **FIELDS).eval()
    quantlora.save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(fresh(folder), str(tmp_path)).eval()
    assert agree(theirs, ours)


def test_a_file_comes_back_from_peft_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    ours = quantlora.wrap(fresh(folder), **FIELDS)
    quantlora.save_adapter(ours, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(fresh(folder), str(tmp_path / "ours"))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    again = fresh(folder)
    quantlora.load_adapter(again, tmp_path / "theirs")
    for (_, one), (_, other) in zip(lora(ours), lora(again), strict=True):
        assert one.scaling == pytest.approx(other.scaling)
        for name, tensor in one.adapter_tensors("default").items():
            assert torch.equal(tensor, other.adapter_tensors("default")[name])


def lora(model: nn.Module) -> list[tuple[str, Any]]:
    return [(p, one) for p, one in model.named_modules() if isinstance(one, quantlora.LoraLayer)]
