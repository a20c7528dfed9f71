"""``bias="all"`` and ``"lora_only"``: PEFT's biases, gradients, files; the base stays as it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import quantlora
from quantlora.errors import AdapterError, AdapterFileError
from quantlora.testing.models import tiny_llama
from tests.tools.peft_oracle import IDS, TOLERANCE, Pair, check_logits, peft_model, relative

MODES = ["all", "lora_only"]
WEIGHTS = "adapter_model.safetensors"
BACKENDS = ["float", "bitsandbytes_4bit", "bitsandbytes_8bit", "normalfloat"]


def biased(**changes: Any) -> Any:
    """A Llama with random biases in attention and MLP; only q_proj and up_proj get adapters."""
    model = tiny_llama(attention_bias=True, mlp_bias=True, **changes)
    return shaken(model.eval(), 2)


def shaken(model: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    for key, parameter in model.named_parameters():
        if key.endswith(".bias") and "lora_" not in key:
            parameter.data += 0.1 * torch.randn_like(parameter) * parameter.requires_grad
    return model


def both(mode: str, folder: Path, **fields: Any) -> Pair:
    plain = biased()
    adapter = {"default": {"r": 3, "bias": mode, **fields}}
    theirs = shaken(peft_model(adapter, copy.deepcopy(plain)), 4)
    theirs.save_pretrained(str(folder))
    if not any(key.endswith("base_layer.bias") for key in load_file(folder / WEIGHTS)):
        pytest.skip("this PEFT does not save the biases it has trained")
    return Pair(theirs, quantlora.load_adapter(plain, folder, is_trainable=True))


def ours(mode: str, **fields: Any) -> Any:
    wanted = {"target_modules": ["q_proj", "up_proj"], "r": 3, "init_lora_weights": False}
    return shaken(quantlora.wrap(biased(), bias=mode, **{**wanted, **fields}), 5)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fields", [{}, {"use_dora": True}, {"lora_bias": True}])
def test_logits_and_gradients_agree_with_peft(mode: str, fields: Any, tmp_path: Path) -> None:
    pair = both(mode, tmp_path, **fields)
    check_logits(pair)
    for model in (pair.theirs, pair.ours):
        model(input_ids=IDS, labels=IDS).loss.backward()
    prefix = "base_model.model."
    theirs = {k.removeprefix(prefix): p.grad for k, p in pair.theirs.named_parameters()}
    found = {k: p.grad for k, p in pair.ours.named_parameters() if p.requires_grad}
    assert {k for k in found if k.endswith(".bias")} == {
        k for k, grad in theirs.items() if k.endswith(".bias") and grad is not None
    }
    largest = max(float(grad.abs().max()) for grad in found.values())
    for key, grad in found.items():  # k_proj's bias has no effect through softmax: only rounding
        scale = max(float(theirs[key].abs().max()), 1e-3 * largest)
        assert float((grad - theirs[key]).abs().max()) <= TOLERANCE * scale


@pytest.mark.parametrize("mode", MODES)
def test_peft_loads_what_we_save(mode: str, tmp_path: Path) -> None:
    model = ours(mode)
    quantlora.save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(biased(), str(tmp_path)).eval()
    assert relative(logits(model), logits(theirs)) <= TOLERANCE


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("active", [True, False])
def test_a_saved_adapter_comes_back_bit_for_bit(mode: str, active: bool, tmp_path: Path) -> None:
    """Also one that is not active when it is saved."""
    model = ours(mode)
    wanted = logits(model)
    if not active:
        quantlora.wrap(model, adapter_name="second", r=2)
    quantlora.save_adapter(model, tmp_path)
    assert torch.equal(logits(quantlora.load_adapter(biased(), tmp_path)), wanted)


@pytest.mark.parametrize("mode", MODES)
def test_without_the_adapter_the_base_is_what_it_was(mode: str) -> None:
    model, base = ours(mode), logits(biased())
    trained = logits(model)
    assert not torch.equal(trained, base)
    with quantlora.adapters_disabled(model):
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), trained)
    quantlora.delete_adapter(model, "default")
    assert torch.equal(logits(model), base)
    assert torch.equal(logits(quantlora.unload(ours(mode))), base)


@pytest.mark.parametrize("mode", MODES)
def test_another_adapter_sees_the_models_own_biases(mode: str) -> None:
    model, alone = ours(mode), biased()
    for one in (model, alone):
        torch.manual_seed(3)
        quantlora.wrap(one, adapter_name="second", r=2, init_lora_weights=False)
    assert torch.equal(logits(model), logits(alone))
    quantlora.rename_adapter(model, "default", "first")
    quantlora.set_adapter(model, "first")
    assert torch.equal(logits(model), logits(ours(mode)))
    assert {
        p.requires_grad for k, p in model.named_parameters() if "q_proj.base_layer.bias" in k
    } == {True}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("active", [["default"], ["second"], ["second", "default"]])
def test_a_merge_takes_the_biases_in_and_gives_them_back(mode: str, active: list[str]) -> None:
    model = ours(mode)
    quantlora.wrap(model, adapter_name="second", r=2, lora_alpha=1, init_lora_weights=False)
    quantlora.set_adapter(model, active)
    before = logits(model)
    quantlora.set_adapter(model, "second")
    second = logits(model)
    quantlora.set_adapter(model, active)
    quantlora.merge(model, active)
    assert relative(logits(model), before) <= TOLERANCE
    quantlora.unmerge(model)
    assert torch.equal(logits(model), before)
    quantlora.set_adapter(model, "second")
    assert torch.equal(logits(model), second)


@pytest.mark.parametrize("mode", MODES)
def test_an_inactive_adapter_is_merged_with_its_biases(mode: str) -> None:
    model = ours(mode)
    quantlora.wrap(model, adapter_name="second", target_modules=["q_proj"], init_lora_weights=False)
    quantlora.set_adapter(model, ["default", "second"])
    wanted = logits(model)
    quantlora.set_adapter(model, "second")
    quantlora.merge(model, "default")
    assert relative(logits(model), wanted) <= TOLERANCE
    quantlora.merge_and_unload(model)
    assert relative(logits(model), wanted) <= TOLERANCE
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_biases_do_not_change_under_a_merge() -> None:
    model = ours("lora_only")
    quantlora.wrap(model, adapter_name="second", r=2, init_lora_weights=False)
    quantlora.merge(model, "second")
    with pytest.raises(AdapterError, match="cannot change while second is merged"):
        quantlora.set_adapter(model, ["default", "second"])


@pytest.mark.parametrize("mode", MODES)
def test_an_export_has_the_biases(mode: str, tmp_path: Path) -> None:
    model = ours(mode)
    quantlora.export_merged(model, tmp_path / "merged", progress=False)
    again = type(model).from_pretrained(tmp_path / "merged").eval()
    assert relative(logits(again), logits(model)) <= TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_packed_layers_bias_is_trained(backend: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64))
    quantlora.wrap(model, backend=backend, bias="lora_only", target_modules=["0"], r=2)
    weight = torch.randn(5, 64)
    (model(torch.randn(5, 64)) * weight).sum().backward()
    bias = model[0].bias
    assert bias.requires_grad
    assert relative(bias.grad, weight.sum(0)) <= (2e-2 if "8bit" in backend else TOLERANCE)


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    model = ours("all")
    quantlora.wrap(model, adapter_name="second", bias="lora_only", target_modules=["q_proj"])
    with pytest.raises(AdapterError, match="have each trained this bias"):
        quantlora.set_adapter(model, ["default", "second"])
    with pytest.raises(AdapterError, match="all samples share"):
        model(IDS, adapter_names=["default"] * 5)
    quantlora.save_adapter(model, tmp_path)
    with pytest.raises(AdapterFileError, match="it lacks"):
        quantlora.load_adapter(tiny_biases_gone(tmp_path), tmp_path)


def tiny_biases_gone(folder: Path) -> Any:
    file = folder / WEIGHTS
    tensors = {k: one for k, one in load_file(file).items() if not k.endswith("k_proj.bias")}
    save_file(tensors, file, metadata={"format": "pt"})
    return biased()


def test_a_bias_that_is_a_buffer_is_trained_too() -> None:
    """Some packed formats keep it as one."""
    layer = nn.Linear(8, 8)
    fixed = layer._parameters.pop("bias").detach()
    layer.register_buffer("bias", fixed)
    model = quantlora.wrap(nn.Sequential(layer), bias="lora_only", target_modules=["0"], r=2)
    model(torch.ones(1, 8)).sum().backward()
    assert torch.equal(layer.bias.grad, torch.ones(8))
    assert "bias" in dict(layer.named_parameters())
    quantlora.unload(model)
    assert layer.bias is fixed
    assert "bias" in dict(layer.named_buffers())


def test_a_copy_has_biases_of_its_own() -> None:
    model = ours("all")
    twin = copy.deepcopy(model)
    quantlora.set_adapter(model, [])
    assert torch.equal(logits(model), logits(biased()))
    assert torch.equal(logits(twin), logits(ours("all")))
