"""``quantlora inspect`` of an adapter's folder, and where a model's bytes are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from typer.testing import CliRunner

import quantlora
from quantlora.cli import app
from quantlora.inspection.model_parts import expert_parameters, model_parts
from quantlora.testing.models import tiny_llama
from tests.tools.expert_models import mixtral


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["inspect", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def adapter(tmp_path: Path) -> tuple[Path, nn.Module]:
    model = quantlora.wrap(
        tiny_llama(), r=4, lora_alpha=8, backend="normalfloat", init_lora_weights=False,
        rank_pattern={"0.mlp.up_proj": 2}, target_modules=["q_proj", "up_proj"],
        modules_to_save=["lm_head"],
    )  # fmt: skip
    return quantlora.save_adapter(model, tmp_path), model


def test_the_norms_are_those_of_the_updates(adapter: tuple[Path, nn.Module]) -> None:
    folder, model = adapter
    found = json.loads(run(str(folder), "--json"))
    (kind,) = [kind for kind in found["kinds"] if kind["name"] == "q_proj"]
    norms = {
        path: float(layer.delta_weight("default", torch.empty(0)).double().norm())
        for path, layer in quantlora.lora_layers(model)
        if path.endswith("q_proj")
    }
    assert kind["update"] == pytest.approx(sum(norms.values()) / 2, rel=1e-5)
    assert kind["largest"] == max(norms, key=lambda path: norms[path])


def test_the_table_tells_rank_base_format_and_what_else_is_there(
    adapter: tuple[Path, nn.Module],
) -> None:
    text = " ".join(run(str(adapter[0])).split())
    assert "LoRA adapter, rank 4, alpha 8" in text
    assert "2 to 4" in text
    assert "trained on normalfloat" in text
    assert "also in the file: lm_head.weight" in text


def test_numbers_and_bytes_are_those_of_the_file(adapter: tuple[Path, nn.Module]) -> None:
    found: dict[str, Any] = json.loads(run(str(adapter[0]), "--json"))
    size = (adapter[0] / "adapter_model.safetensors").stat().st_size
    assert 0 < size - found["bytes"] < 8192
    assert found["bytes"] == 4 * found["parameters"]


def test_the_experts_of_a_mixture_are_counted() -> None:
    model = mixtral()
    wanted = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    assert expert_parameters(model) == wanted > 0
    assert expert_parameters(tiny_llama()) == 0


def test_the_parts_add_up_and_alike_blocks_are_one() -> None:
    model = tiny_llama(num_hidden_layers=3)
    parts = model_parts(model, {})
    assert [(part.name, part.count) for part in parts] == [
        ("model.embed_tokens", 1), ("model.layers.0 to 2", 3), ("model.norm", 1), ("lm_head", 1),
    ]  # fmt: skip
    assert sum(p.count * p.parameters for p in parts) == sum(p.numel() for p in model.parameters())
    assert sum(p.count * p.bytes for p in parts) == 4 * sum(p.numel() for p in model.parameters())


def test_a_packed_checkpoint_s_blocks_are_as_small_as_they_are_stored(tmp_path: Path) -> None:
    packed = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 99}
    blocks = []
    for name, more in {"float": {}, "packed": {"quantization_config": packed}}.items():
        config = LlamaConfig(
            **sizes, dtype=torch.bfloat16, architectures=["LlamaForCausalLM"], **more
        )
        config.save_pretrained(tmp_path / name)
        parts = json.loads(
            CliRunner().invoke(app, ["inspect", str(tmp_path / name), "--json"]).stdout
        )
        blocks += [part["bytes"] for part in parts["parts"] if part["count"] == 2]
    assert 0.2 < blocks[1] / blocks[0] < 0.4
