"""``save_adapter(..., portable=True)``: plain LoRA that every reader computes alike."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import quantlora
from quantlora.errors import AdapterFileError
from quantlora.testing.models import tiny_llama

IDS = torch.tensor([[1, 5, 6, 7]])
SETTINGS = {
    "plain": {"r": 4, "lora_alpha": 8},
    "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "patterns": {
        "r": 4,
        "rank_pattern": {"q_proj": 2, ".*layers.1.*v_proj": 7},
        "alpha_pattern": {"o_proj": 3},
        "use_rslora": True,
    },
    "dropout": {"r": 4, "lora_dropout": 0.3},
    "embeddings": {"r": 4, "lora_alpha": 6, "target_modules": ["embed_tokens", "q_proj"]},
    "pissa": {"r": 4, "lora_alpha": 8, "init_lora_weights": "pissa"},
}


def trained(**settings):
    """A wrapped model whose adapter does something, in evaluation mode."""
    torch.manual_seed(0)
    model = quantlora.wrap(
        tiny_llama(), target_modules=settings.pop("target_modules", "all-linear"), **settings
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def by_hand(folder):
    """The logits of the base with ``B · A`` of the file, and no scale at all, added to it."""
    model = tiny_llama()
    tensors = load_file(folder / "adapter_model.safetensors")
    for key, A in tensors.items():
        path, _, name = key.removeprefix("base_model.model.").partition(".lora_")
        if name.startswith(("A", "embedding_A")):
            B = tensors[key.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B")]
            layer = model.get_submodule(path)
            update = B @ A
            layer.weight.data += update.T if isinstance(layer, nn.Embedding) else update
    return model.eval()(IDS).logits


@pytest.mark.parametrize("name", SETTINGS)
def test_the_file_needs_no_scale_and_gives_the_same_logits(tmp_path, name):
    model = trained(**SETTINGS[name])
    quantlora.save_adapter(model, tmp_path, portable=True)
    torch.testing.assert_close(by_hand(tmp_path), model(IDS).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_config_says_one_rank_and_a_scale_of_one(tmp_path, name):
    quantlora.save_adapter(trained(**SETTINGS[name]), tmp_path, portable=True)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    ranks = {len(A) for key, A in tensors.items() if "lora_A" in key or "embedding_A" in key}
    assert ranks == {config["r"]} == {config["lora_alpha"]}
    assert not config["rank_pattern"] | config["alpha_pattern"]
    assert config["use_rslora"] is False
    assert config["init_lora_weights"] is True


@pytest.mark.parametrize("name", ["rslora", "patterns", "pissa"])
def test_quantlora_and_peft_read_it_as_the_adapter_that_it_is(tmp_path, name):
    peft = pytest.importorskip("peft")
    model = trained(**SETTINGS[name])
    quantlora.save_adapter(model, tmp_path, portable=True)
    ours = quantlora.load_adapter(tiny_llama(), tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path)
    for found in (ours, theirs):
        torch.testing.assert_close(found(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"use_dora": True}, "it has DoRA"),
        ({"bias": "lora_only"}, "it has trained biases"),
        ({"lora_bias": True}, "it has trained biases"),
        ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, "modules trained in full"),
        ({"trainable_token_indices": [3]}, "it has trained tokens"),
    ],
)
def test_what_is_more_than_two_factors_is_refused_and_nothing_written(tmp_path, settings, why):
    model = trained(r=4, **settings)
    with pytest.raises(AdapterFileError, match=why):
        quantlora.save_adapter(model, tmp_path / "out", portable=True)
    assert not (tmp_path / "out").exists()


def test_a_convolution_is_refused_by_its_tensor(tmp_path):
    model = quantlora.wrap(nn.Sequential(nn.Conv2d(3, 8, 3)), r=2, target_modules=["0"])
    with pytest.raises(AdapterFileError, match="is no matrix"):
        quantlora.save_adapter(model, tmp_path / "out", portable=True)
