"""A merged model has the names and shapes that Transformers' own ``save_pretrained`` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import quantlora
from tests.tools.expert_models import MODELS
from tests.tools.versions import IS_TRANSFORMERS_5

pytestmark = pytest.mark.skipif(not IS_TRANSFORMERS_5, reason="Transformers 4 has these names")


def llava() -> Any:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration as Llava,
    )

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text = LlamaConfig(**sizes, vocab_size=40, num_attention_heads=2)
    vision = CLIPVisionConfig(**sizes, num_attention_heads=2, image_size=8, patch_size=4)
    torch.manual_seed(0)
    parts: dict[str, Any] = {"vision_config": vision, "text_config": text}
    return Llava(LlavaConfig(**parts, image_token_index=39, vision_feature_layer=-1))


MAKERS = {**MODELS, "llava": llava}


def merged_files(model: Any, folder: Path, **given: Any) -> dict[str, torch.Tensor]:
    quantlora.wrap(model, init_lora_weights=False, r=2)
    quantlora.export_merged(model, folder / "merged", check=False, progress=False, **given)
    return load_file(folder / "merged" / "model.safetensors")


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("loaded", [False, True], ids=["made", "loaded"])
def test_names_and_values_are_those_of_save_pretrained(
    kind: str, loaded: bool, tmp_path: Path
) -> None:
    model = MAKERS[kind]()
    if loaded:
        model.save_pretrained(tmp_path / "float")
        model = type(model).from_pretrained(tmp_path / "float")
    found = merged_files(model, tmp_path)
    quantlora.merge_and_unload(model)
    model.save_pretrained(tmp_path / "theirs")
    wanted = load_file(tmp_path / "theirs" / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-6)


def test_experts_are_written_one_by_one(tmp_path: Path) -> None:
    found = merged_files(MODELS["mixtral"](), tmp_path)
    names = [name.split("experts.")[1] for name in found if "layers.0" in name and "exp" in name]
    assert sorted(names) == sorted(f"{e}.w{i}.weight" for e in range(4) for i in (1, 2, 3))


def test_packed_experts_too(tmp_path: Path) -> None:
    model = quantlora.quantize(MODELS["qwen3_moe"](), backend="normalfloat")
    found = merged_files(model, tmp_path)
    assert found["model.layers.1.mlp.experts.3.up_proj.weight"].shape == (24, 32)


def test_the_export_is_checked_by_loading_it(tmp_path: Path) -> None:
    model = quantlora.wrap(llava(), init_lora_weights=False, r=2)
    report = quantlora.export_merged(model, tmp_path / "merged", progress=False)
    assert report.check is not None


def test_a_packed_export_keeps_its_codes(tmp_path: Path) -> None:
    MODELS["mixtral"]().save_pretrained(tmp_path / "float")
    given: dict[str, Any] = {"backend": "normalfloat", "target_experts": False}
    model = quantlora.load(tmp_path / "float", **given)
    files = merged_files(model, tmp_path, mode="requantize")
    assert files["model.layers.0.self_attn.q_proj.packed"].dtype == torch.uint8
    loaded = quantlora.load(tmp_path / "merged")
    assert isinstance(loaded.model.layers[0].mlp.experts.down_proj, nn.Parameter)
    quantlora.merge_and_unload(model)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model.eval()(ids).logits)
