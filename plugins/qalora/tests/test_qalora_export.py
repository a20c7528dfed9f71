"""The merged model as a checkpoint: at its bits, and equal in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora
from plugins.gptq.tests.gptq_checkpoint import Recipe, write_checkpoint
from plugins.gptq.tests.gptq_loading import HAS_AUTO_GPTQ, HAS_GPTQMODEL, load, tokens
from quantlora.testing.models import tiny_llama

#: Loads a checkpoint with Transformers alone and writes its logits.
SCRIPT = """
import sys, torch, quantlora_normalfloat
from transformers import AutoModelForCausalLM
quantlora_normalfloat.register()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    torch.save(model(input_ids=torch.load(sys.argv[2])).logits, sys.argv[3])
"""
UNIFORM = {"quant_type": "uniform", "block_size": 32}
FIELDS: dict[str, Any] = {"r": 4, "lora_alpha": 1, "use_qalora": True}


def of_normalfloat(folder: Path) -> nn.Module:
    fields = {"backend": "normalfloat", "quantize_options": {"bits": 3, **UNIFORM}, **FIELDS}
    return quantlora.wrap(tiny_llama(), **fields)


def of_gptq(folder: Path) -> nn.Module:
    if not (HAS_GPTQMODEL or HAS_AUTO_GPTQ):
        pytest.skip("neither gptqmodel nor auto-gptq is installed")
    write_checkpoint(folder, Recipe(desc_act=True))
    model = load(folder)
    for module in model.modules():  # float16 scales would be rounded once more before the merge
        if hasattr(module, "qweight"):
            module.scales = module.scales.float()
    return quantlora.wrap(model, **FIELDS)


@pytest.fixture(
    params=[of_normalfloat, pytest.param(of_gptq, marks=pytest.mark.slow)],
    ids=["normalfloat", "gptq"],
)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> nn.Module:
    """Trained, so that its adapters count; also that it trains."""
    torch.manual_seed(0)
    found = request.param(tmp_path)
    first, *_, last = train(found)
    assert last < first - 0.3
    return found.eval()


def train(model: nn.Module) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        loss = model.train()(input_ids=tokens(), labels=tokens()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=tokens()).logits


def far(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def elsewhere(folder: Path) -> Tensor:
    """The logits that a fresh process computes."""
    files = [str(folder.parent / name) for name in ("ids.pt", "logits.pt")]
    torch.save(tokens(), files[0])
    subprocess.run([sys.executable, "-c", SCRIPT, str(folder), *files], check=True)
    return torch.load(files[1])


def test_the_exported_model_is_equal_in_a_fresh_process(model: nn.Module, tmp_path: Path) -> None:
    before = logits(model)
    report = quantlora.export_merged(model, tmp_path / "merged", mode="exact")
    assert max(report.check.weights.values()) == 0.0
    merged = logits(quantlora.merge_and_unload(model, mode="exact"))
    found = elsewhere(tmp_path / "merged")
    assert far(found, merged) < 1e-6
    assert far(found, before) < 1e-5


def test_its_config_names_the_format_and_the_bits(model: nn.Module, tmp_path: Path) -> None:
    quantlora.export_merged(model, tmp_path / "merged", mode="exact", check=False)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "normalfloat"
    bits = {one["bits"] for one in config["layers"].values()}
    assert bits == {model.model.layers[0].mlp.up_proj.base_layer.bits}


def test_a_packed_layer_without_the_adapter_is_an_error(tmp_path: Path) -> None:
    plain = quantlora.unload(of_normalfloat(tmp_path))
    model = quantlora.wrap(plain, target_modules=["q_proj"], **FIELDS)
    with pytest.raises(quantlora.MergeError, match=r"k_proj is packed and none of these adapters"):
        quantlora.export_merged(model, tmp_path / "merged", mode="exact")
    assert not (tmp_path / "merged").exists()
