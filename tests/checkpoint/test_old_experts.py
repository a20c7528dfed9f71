"""Files that PEFT 0.17 and 0.18 wrote for experts: their update, written out, is what is loaded."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import quantlora
from quantlora.errors import AdapterWarning
from tests.tools.expert_models import BOTH, MODELS, SIZES, made, mixtral

IDS = torch.arange(24).reshape(2, 12)
PREFIX = "base_model.model.model.layers.{}.mlp.experts."


def square() -> Any:
    """Twice the intermediate size is the hidden size: shapes do not tell the layouts apart."""
    from transformers import MixtralConfig, MixtralForCausalLM

    return made(MixtralForCausalLM, MixtralConfig(**{**SIZES, "intermediate_size": 16}))


def file_of(model: Any, folder: Path, names: list[str]) -> dict[str, Tensor]:
    fields = {"target_modules": [], "target_parameters": names, "init_lora_weights": False}
    quantlora.save_adapter(quantlora.wrap(model, r=3, **fields), folder)
    (folder / "quantlora.json").unlink()
    return load_file(folder / "adapter_model.safetensors")


def write(folder: Path, tensors: dict[str, Tensor], version: str | None) -> None:
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = folder / "adapter_config.json"
    known = {} if version is None else {"peft_version": version}
    config.write_text(json.dumps(json.loads(config.read_text()) | known))


def old_update(A: Tensor, B: Tensor, experts: int, scaling: float) -> Tensor:
    """`get_delta_weight` of PEFT 0.18.1: ``(experts, in, out)``, whatever the module says."""
    first = A.reshape(experts, -1, A.shape[-1])
    return scaling * torch.einsum("o r e, e r i -> e i o", B.reshape(len(B), -1, experts), first)


def check(make: Any, folder: Path, names: list[str], version: str | None) -> None:
    """Random old tensors, against a base to which their update is added by hand."""
    new, plain, old = file_of(make(), folder, names), make(), {}
    for layer in range(2):
        experts = plain.model.layers[layer].mlp.experts
        for depth, name in enumerate(reversed([one.rpartition(".")[2] for one in names])):
            keys = [
                f"{PREFIX.format(layer)}{'base_layer.' * depth}lora_{side}.weight" for side in "AB"
            ]
            count, out, into = getattr(experts, name).shape
            A, B = torch.randn(count * 3, out) / 4, torch.randn(into, 3 * count) / 4
            old |= dict(zip(keys, (A, B), strict=True))
            with torch.no_grad():
                getattr(experts, name).add_(old_update(A, B, count, 8 / 3))
    assert old.keys() == new.keys()
    write(folder, old, version)
    with pytest.warns(AdapterWarning, match="layout of PEFT before 0.19"):
        model = quantlora.load_adapter(make(), folder).eval()
    with torch.no_grad():
        found, wanted = model(IDS).logits, plain.eval()(IDS).logits
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5


@pytest.mark.parametrize("version", ["0.18.1", None])
@pytest.mark.parametrize("names", [BOTH, BOTH[:1]])
def test_a_file_that_its_shapes_give_away_is_turned_over(
    names: list[str], version: str | None, tmp_path: Path
) -> None:
    check(mixtral, tmp_path, names, version)


@pytest.mark.parametrize("version", ["0.18.1", None])
def test_where_shapes_do_not_tell_the_version_does(version: str | None, tmp_path: Path) -> None:
    check(square, tmp_path, BOTH[:1], version)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("version", ["0.19.0", "0.21.2", None])
def test_a_new_file_is_left_as_it_is(name: str, version: str | None, tmp_path: Path) -> None:
    tensors = file_of(MODELS[name](), tmp_path, BOTH)
    write(tmp_path, tensors, version)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdapterWarning)
        model = quantlora.load_adapter(MODELS[name](), tmp_path)
    layer = model.model.layers[0].mlp.experts
    found = layer.adapter_tensors("default")["lora_A.weight"]
    assert torch.equal(found, tensors[f"{PREFIX.format(0)}lora_A.weight"])


def test_our_own_file_of_square_experts_is_left_as_it_is(tmp_path: Path) -> None:
    """It says no version of PEFT's; its note says who has written it."""
    fields = {"target_modules": [], "target_parameters": BOTH[:1], "init_lora_weights": False}
    model = quantlora.wrap(square(), r=3, **fields).eval()
    quantlora.save_adapter(model, tmp_path)
    again = quantlora.load_adapter(square(), tmp_path).eval()
    assert torch.equal(again(IDS).logits, model(IDS).logits)
