"""``quantlora export gguf``: what the package ``gguf`` reads from the file is our update."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import quantlora
from quantlora.cli import app
from tests.tools.versions import IS_TRANSFORMERS_5

pytest.importorskip("gguf")
if not IS_TRANSFORMERS_5:
    pytest.skip("loads with Transformers 5", allow_module_level=True)

import gguf
from transformers import AutoConfig, AutoModelForCausalLM

COMMON = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "vocab_size": 96, "head_dim": 16,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral": ("llama", {}),
    "qwen2": ("qwen2", {"head_dim": None}),
    "qwen3": ("qwen3", {"head_dim": 128}),
    "gemma3_text": ("gemma3", {"head_dim": 256}),
    "mixtral": ("llama", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "qwen3moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
}
SETTINGS = {
    "r": 4,
    "lora_alpha": 6,
    "use_rslora": True,
    "rank_pattern": {".*v_proj": 2},
    "alpha_pattern": {".*q_proj": 3},
}


def saved(folder: Path, model_type: str, **settings: Any) -> nn.Module:
    """A trained adapter in ``adapter`` for the base in ``base``; the wrapped model."""
    fields = {k: v for k, v in {**COMMON, **FAMILIES[model_type][1]}.items() if v is not None}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **fields)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    model = AutoModelForCausalLM.from_pretrained(folder / "base").eval()
    quantlora.wrap(model, **settings)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    quantlora.save_adapter(model, folder / "adapter")
    return model


def run(folder: Path, *options: str) -> str:
    result = CliRunner().invoke(app, ["export", "gguf", str(folder / "adapter"), *options])
    assert result.exit_code == 0, result.output
    return result.output


def read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors of a file, in float64."""
    reader = gguf.GGUFReader(file)
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        shape = tuple(int(n) for n in reversed(tensor.shape))
        tensors[tensor.name] = torch.from_numpy(values.astype(np.float64)).reshape(shape)
    return {key: entry.contents() for key, entry in reader.fields.items()}, tensors


def permuted(rows: Tensor, heads: int) -> Tensor:
    """llama.cpp's order of the rows of q and k (``LlamaModel.permute`` of its converter)."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def updates(model: Any, model_type: str) -> dict[str, Tensor]:
    """What the file's tensors must add to the base, by llama.cpp's names."""
    found: dict[str, Tensor] = {}
    names = {
        "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
        "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
    }  # fmt: skip
    heads = {"q_proj": COMMON["num_attention_heads"], "k_proj": COMMON["num_key_value_heads"]}
    for path, layer in quantlora.lora_layers(model):
        block, last = re.search(r"layers\.(\d+)", path)[1], path.rpartition(".")[2]
        if last == "experts":
            deltas = {k: v.double() for k, v in layer.deltas("default").items()}
            gate, up = deltas["gate_up_proj"].chunk(2, dim=1)
            stacks = {"gate": gate, "up": up, "down": deltas["down_proj"]}
            found |= {f"blk.{block}.ffn_{k}_exps.weight": v for k, v in stacks.items()}
            continue
        A, B = (side["default"].weight.double() for side in (layer.lora_A, layer.lora_B))
        delta = layer.scaling["default"] * (B @ A)
        if FAMILIES[model_type][0] == "llama" and last in heads:
            delta = permuted(delta, heads[last])
        found[f"blk.{block}.{names[last]}.weight"] = delta
    return found


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_files_update_is_ours(tmp_path, model_type):
    model = saved(tmp_path, model_type, **SETTINGS)
    run(tmp_path, "--output", str(tmp_path / "out"))
    metadata, tensors = read(tmp_path / "out" / "adapter.gguf")
    wanted = updates(model, model_type)
    assert {name.rpartition(".")[0] for name in tensors} == wanted.keys()
    for name, delta in wanted.items():
        A, B = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        found = metadata["adapter.lora.alpha"] / B.shape[-1] * (B @ A)
        torch.testing.assert_close(found, delta, rtol=1e-5, atol=1e-6)


def test_the_metadata_are_those_of_an_adapter(tmp_path):
    saved(tmp_path, "mistral", r=4)
    run(tmp_path)
    metadata, _ = read(tmp_path / "adapter-gguf" / "adapter.gguf")
    assert metadata["general.architecture"] == "llama"
    assert metadata["general.type"] == "adapter"
    assert metadata["adapter.type"] == "lora"
    assert metadata["adapter.lora.alpha"] == 4


def test_a_modelfile_and_what_to_type_are_there(tmp_path):
    saved(tmp_path, "llama", r=4)
    output = run(tmp_path)
    text = (tmp_path / "adapter-gguf" / "Modelfile").read_text()
    assert text.splitlines()[1:] == [f"FROM {tmp_path / 'base'}", "ADAPTER ./adapter.gguf"]
    assert "Next: llama-cli -m BASE.gguf --lora" in output
    assert "ollama create my-model -f" in output


def test_the_template_of_the_training_is_in_what_to_type(tmp_path):
    saved(tmp_path, "llama", r=4)
    template = tmp_path / "adapter" / "chat_template.jinja"
    template.write_text("{{ messages }}")
    assert f"--jinja --chat-template-file {template}\n" in run(tmp_path)


def test_an_embedding_is_by_token(tmp_path):
    saved(tmp_path, "llama", r=4, target_modules=["embed_tokens", "q_proj"])
    run(tmp_path)
    _, tensors = read(tmp_path / "adapter-gguf" / "adapter.gguf")
    assert tensors["token_embd.weight.lora_a"].shape == (96, 4)
    assert tensors["token_embd.weight.lora_b"].shape == (64, 4)


@pytest.mark.parametrize(
    ("model_type", "settings", "why"),
    [
        ("llama", {"use_dora": True}, "it has DoRA"),
        ("llama", {"bias": "lora_only"}, "it has trained biases"),
        ("llama", {"lora_bias": True}, "it has trained biases"),
        ("llama", {"modules_to_save": ["lm_head"]}, "it has modules trained in full"),
        ("llama", {"trainable_token_indices": [3]}, "it has trained tokens"),
        ("gemma3_text", {"target_modules": ["lm_head"]}, "the base's head is its embedding"),
        ("gemma3_text", {"target_modules": ["embed_tokens"]}, "would add the update to both"),
    ],
)
def test_what_has_no_place_is_refused_by_name_and_nothing_written(
    tmp_path, model_type, settings, why
):
    saved(tmp_path, model_type, r=4, **{"target_modules": ["q_proj"], **settings})
    result = CliRunner().invoke(app, ["export", "gguf", str(tmp_path / "adapter")])
    assert result.exit_code == 1
    assert why in " ".join(result.output.split())
    assert "erge" in result.output
    assert not (tmp_path / "adapter-gguf").exists()


def test_another_base_is_refused_by_a_layer_that_differs(tmp_path):
    saved(tmp_path / "small", "llama", r=4)
    changes = {**COMMON, "hidden_size": 32, "head_dim": 8}
    config = AutoConfig.for_model("llama", **changes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
    arguments = ["export", "gguf", str(tmp_path / "small" / "adapter"), "--model"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "other")])
    assert result.exit_code == 1
    assert "name the base that the adapter was trained on, by --model" in " ".join(
        result.output.split()
    )
