"""A packed checkpoint loads as what was saved, every byte the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import quantlora
from quantlora.errors import AdapterError, BackendError, ConfigError
from quantlora.testing.models import tiny_llama
from tests.tools.expert_models import MODELS, mixtral
from tests.tools.versions import IS_TRANSFORMERS_5

pytestmark = pytest.mark.skipif(not IS_TRANSFORMERS_5, reason="Transformers 4 loads otherwise")

FORMATS: list[tuple[str, dict[str, Any]]] = [
    ("normalfloat", {"bits": 3, "double_quant": True}),
    ("normalfloat", {"quant_type": "uniform", "block_size": 16}),
    ("bitsandbytes_4bit", {}),
    ("bitsandbytes_4bit", {"compress_statistics": False, "quant_type": "fp4"}),
]
IDS = torch.arange(8)[None]


def packed(make: Any = mixtral, backend: str = "normalfloat", **options: Any) -> Any:
    return quantlora.quantize(make(), backend=backend, quantize_options=options).eval()


def assert_same(found: nn.Module, wanted: nn.Module) -> None:
    left, right = found.state_dict(), wanted.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[n], right[n]) and left[n].dtype == right[n].dtype for n in right)
    with torch.no_grad():
        assert torch.equal(found(IDS).logits, wanted(IDS).logits)


@pytest.mark.parametrize(("backend", "options"), FORMATS)
@pytest.mark.parametrize("make", [mixtral, tiny_llama], ids=["mixtral", "llama"])
def test_every_format_comes_back(make: Any, backend: str, options: Any, tmp_path: Path) -> None:
    model = packed(make, backend, **options)
    quantlora.save_packed(model, tmp_path / "packed")
    found = quantlora.load(tmp_path / "packed")
    assert_same(found, model)
    assert found.state_dict()["lm_head.weight"].dtype == torch.float32


@pytest.mark.parametrize("family", MODELS)
def test_every_layout_comes_back_and_again(family: str, tmp_path: Path) -> None:
    model = packed(MODELS[family], block_size=8)
    quantlora.save_packed(model, tmp_path / "first")
    found = quantlora.load(tmp_path / "first", backend="normalfloat")
    quantlora.save_packed(found, tmp_path / "second")
    files = [tmp_path / name / "model.safetensors" for name in ("first", "second")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert_same(quantlora.load(tmp_path / "second"), model)


def test_shards_and_half_precision_come_back(tmp_path: Path) -> None:
    mixtral().save_pretrained(tmp_path / "float")
    given = {"backend": "bitsandbytes_4bit", "dtype": torch.bfloat16}
    model = quantlora.load(tmp_path / "float", **given)
    quantlora.save_packed(model, tmp_path / "packed", max_shard_size=20_000)
    assert len(list((tmp_path / "packed").glob("*.safetensors"))) > 2
    assert_same(quantlora.load(tmp_path / "packed"), model)


def test_half_of_the_experts_may_be_packed(tmp_path: Path) -> None:
    given = {"target_modules": [], "target_parameters": ["experts.down_proj"]}
    model = quantlora.quantize(mixtral(), backend="normalfloat", **given).eval()
    quantlora.save_packed(model, tmp_path / "packed")
    found = quantlora.load(tmp_path / "packed")
    assert_same(found, model)
    assert list(found.model.layers[0].mlp.experts.stacks) == ["down_proj"]


def test_what_comes_back_trains_and_merges(tmp_path: Path) -> None:
    quantlora.save_packed(packed(), tmp_path / "packed")
    model = quantlora.wrap(quantlora.load(tmp_path / "packed"), r=2)
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    quantlora.merge_and_unload(model)
    quantlora.save_packed(model, tmp_path / "merged")
    assert_same(quantlora.load(tmp_path / "merged"), model.eval())


def test_an_export_of_what_comes_back_has_the_names_of_the_hub(tmp_path: Path) -> None:
    quantlora.save_packed(packed(mixtral), tmp_path / "packed")
    model = quantlora.wrap(quantlora.load(tmp_path / "packed"), r=2)
    quantlora.export_merged(model, tmp_path / "merged", progress=False)
    names = load_file(tmp_path / "merged" / "model.safetensors").keys()
    assert "model.layers.1.block_sparse_moe.experts.3.w1.weight" in names


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    def tied() -> Any:
        return tiny_llama(tie_word_embeddings=True)

    quantlora.save_packed(packed(tied), tmp_path / "packed")
    found = quantlora.load(tmp_path / "packed")
    assert found.lm_head.weight is found.model.embed_tokens.weight


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no layer of the model is packed"):
        quantlora.save_packed(tiny_llama(), tmp_path / "a")
    with pytest.raises(ConfigError, match="save_packed is for Transformers models"):
        quantlora.save_packed(nn.Linear(2, 2), tmp_path / "b")
    with pytest.raises(AdapterError, match="writes models without adapters"):
        quantlora.save_packed(quantlora.wrap(packed(), r=2), tmp_path / "c")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="not an empty folder"):
        quantlora.save_packed(packed(), tmp_path / "full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    quantlora.save_packed(packed(), tmp_path / "packed")
    file = tmp_path / "packed" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.experts.down_proj.packed"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"down_proj\.packed is not among"):
        quantlora.load(tmp_path / "packed")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 2}, "upgrade it"),
        ({"modules": {"model.nowhere.q": None}}, "damaged, or written by a"),
        (
            {"modules": {"model.nowhere.q": {"format": "x", "settings": {}, "tensors": {}}}},
            "no such",
        ),
    ],
)
def test_a_note_that_cannot_be_is_named(change: Any, text: str, tmp_path: Path) -> None:
    quantlora.save_packed(packed(), tmp_path / "packed")
    file = tmp_path / "packed" / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= change
    file.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=text):
        quantlora.load(tmp_path / "packed")


@pytest.mark.parametrize("backend", ["normalfloat", "bitsandbytes_4bit"])
@pytest.mark.parametrize("make", [mixtral, tiny_llama], ids=["mixtral", "llama"])
def test_scales_that_are_no_numbers_are_named(make: Any, backend: str, tmp_path: Path) -> None:
    model = packed(make, backend)
    quantlora.save_packed(model, tmp_path / "packed")
    file = tmp_path / "packed" / "model.safetensors"
    tensors = load_file(file)
    scale = next(name for name in tensors if "absmax" in name or "scales" in name)
    scale = next(n for n in tensors if n.startswith(scale) and tensors[n].is_floating_point())
    tensors[scale].view(-1)[0] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=f"{scale} holds NaN"):
        quantlora.load(tmp_path / "packed")


def test_a_layer_of_nans_is_not_saved(tmp_path: Path) -> None:
    model = packed(tiny_llama)
    scales = dict(model.named_buffers())["model.layers.0.mlp.up_proj.scales.values"]
    scales.view(-1)[0] = float("inf")
    with pytest.raises(BackendError, match=r"mlp.up_proj: its scales.values holds NaN"):
        quantlora.save_packed(model, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
