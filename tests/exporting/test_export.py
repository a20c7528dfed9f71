"""`export_merged`: what others load is the wrapped model, whatever it was made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import quantlora
from quantlora.errors import AdapterWarning, MergeError
from quantlora.files.shards import ShardWriter
from quantlora.testing.models import save_tiny_llama, tiny_llama, tiny_tokenizer
from tests.tools.peft_oracle import relative

IDS = torch.arange(24).reshape(2, 12)
FIELDS: dict[str, Any] = {"r": 4, "lora_alpha": 8, "init_lora_weights": False}


def wrapped(model: Any = None, **fields: Any) -> Any:
    model = tiny_llama() if model is None else model
    return quantlora.wrap(model, **{**FIELDS, **fields}).eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def reloaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("fields", [{}, {"use_dora": True}, {"target_modules": ["q_proj"]}])
def test_the_export_computes_the_same(fields: dict[str, Any], tmp_path: Path) -> None:
    model = wrapped(**fields)
    report = quantlora.export_merged(model, tmp_path / "merged")
    assert report.check is not None
    assert report.check.logits <= 1e-5
    assert relative(logits(reloaded(tmp_path / "merged")), logits(model)) <= 1e-5


@pytest.mark.parametrize("backend", ["normalfloat", "bitsandbytes_4bit", "bitsandbytes_8bit"])
def test_packed_layers_are_exported_in_float(backend: str, tmp_path: Path) -> None:
    model = wrapped(backend=backend, target_modules=["q_proj", "down_proj"])
    quantlora.export_merged(model, tmp_path / "merged")
    found = reloaded(tmp_path / "merged")
    assert relative(logits(found), logits(model)) <= 1e-3
    assert found.get_submodule("model.layers.0.mlp.down_proj").weight.dtype == torch.float32


def test_the_model_stays_as_it_is(tmp_path: Path) -> None:
    model = wrapped()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    quantlora.export_merged(model, tmp_path / "merged")
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_only_the_adapters_named_are_merged(tmp_path: Path) -> None:
    model = wrapped()
    quantlora.wrap(model, adapter_name="second", r=2, init_lora_weights=False)
    quantlora.export_merged(model, tmp_path / "merged", adapters="default", check=False)
    quantlora.set_adapter(model, "default")
    assert relative(logits(reloaded(tmp_path / "merged")), logits(model)) <= 1e-5


def test_weights_come_in_the_dtype_asked_for(tmp_path: Path) -> None:
    quantlora.export_merged(wrapped(), tmp_path / "merged", torch.bfloat16)
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"  # older Transformers


def test_a_large_model_is_written_in_shards(tmp_path: Path) -> None:
    model = wrapped()
    quantlora.export_merged(model, tmp_path / "merged", max_shard_size=100_000)
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "merged").glob("*.safetensors"))
    assert len(files) > 2
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert index["metadata"]["total_size"] == sum(
        t.nbytes for f in files for t in load_file(f).values()
    )
    assert relative(logits(reloaded(tmp_path / "merged")), logits(model)) <= 1e-5


def test_a_transposed_layer_keeps_its_layout(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=80))
    model = wrapped(model, target_modules=["c_attn", "c_proj"])
    assert quantlora.export_merged(model, tmp_path / "merged").check.logits <= 1e-5


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    model = wrapped(tiny_llama(tie_word_embeddings=True))
    quantlora.export_merged(model, tmp_path / "merged")
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")
    assert relative(logits(reloaded(tmp_path / "merged")), logits(model)) <= 1e-5


def test_an_adapter_on_a_tied_head_unties_the_export(tmp_path: Path) -> None:
    model = wrapped(tiny_llama(tie_word_embeddings=True), target_modules=["lm_head"])
    with pytest.warns(AdapterWarning, match="tie_word_embeddings=False"):
        quantlora.export_merged(model, tmp_path / "merged")
    assert relative(logits(reloaded(tmp_path / "merged")), logits(model)) <= 1e-5
    assert model.config.tie_word_embeddings


def test_merging_into_a_tied_head_unties_the_model(tmp_path: Path) -> None:
    model = wrapped(tiny_llama(tie_word_embeddings=True), target_modules=["lm_head"])
    wanted, embedding = logits(model), model.get_input_embeddings().weight.clone()
    with pytest.warns(AdapterWarning, match="tied weights"):
        quantlora.merge_and_unload(model)
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    model.save_pretrained(tmp_path)
    assert relative(logits(reloaded(tmp_path)), wanted) <= 1e-5


def test_the_tokenizer_is_saved_beside_the_model(tmp_path: Path) -> None:
    quantlora.export_merged(wrapped(), tmp_path / "merged", tokenizer=tiny_tokenizer())
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def quantized(folder: Path) -> Any:
    """A model that Transformers itself has loaded in 4 bits."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    pytest.importorskip("bitsandbytes")
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    save_tiny_llama(folder)
    try:
        return AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings)
    except RuntimeError as error:  # old Transformers on a machine without a GPU
        pytest.skip(f"Transformers does not load it here: {error}"[:120])


def test_a_float_export_is_no_quantized_model(tmp_path: Path) -> None:
    model = wrapped(quantized(tmp_path / "base"))
    quantlora.export_merged(model, tmp_path / "merged", torch.float32)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    assert relative(logits(reloaded(tmp_path / "merged")), logits(model)) <= 1e-2
    assert model.config.quantization_config is not None


def test_a_packed_export_keeps_the_quantization_config(tmp_path: Path) -> None:
    model = wrapped(quantized(tmp_path / "base"), lora_alpha=32)
    report = quantlora.export_merged(model, tmp_path / "merged", mode="requantize")
    assert max(report.check.weights.values()) <= 5e-3
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["quantization_config"]["load_in_4bit"]
    found = reloaded(tmp_path / "merged")
    layer = found.get_submodule("model.layers.0.self_attn.q_proj")
    assert quantlora.registry().match("q_proj", layer).name == "bitsandbytes_4bit"


def test_a_plain_module_is_exported_as_tensors(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4))
    x = torch.randn(3, 8)
    wanted = wrapped(model, target_modules=["0", "2"])(x)
    quantlora.export_merged(model, tmp_path / "merged")
    plain = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4))
    plain.load_state_dict(load_file(tmp_path / "merged" / "model.safetensors"))
    assert relative(plain(x), wanted) <= 1e-5


def biased(model: Any) -> Any:
    return wrapped(model, lora_bias=True)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (biased, {}, "no place for it"),
        (wrapped, {"mode": "pack"}, "mode must be"),
        (lambda m: wrapped(m, backend="normalfloat"), {"mode": "requantize"}, "nobody could load"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(
    make: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(MergeError, match=message):
        quantlora.export_merged(make(tiny_llama()), tmp_path / "merged", **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(MergeError, match="not an empty folder"):
        quantlora.export_merged(wrapped(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_damaged_export_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: ShardWriter, tensors: Any) -> None:
        honest(self, ((name, t * 1.5 if "up_proj" in name else t) for name, t in tensors))

    honest = ShardWriter.write
    monkeypatch.setattr(ShardWriter, "write", write)
    with pytest.raises(MergeError, match="its logits differ"):
        quantlora.export_merged(wrapped(), tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_an_export_that_another_has_overtaken_fails_and_leaves_the_other_s(tmp_path: Path) -> None:
    def plain(value: float) -> nn.Module:
        model = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(6)))
        for layer in model:
            nn.init.constant_(layer.weight, value)
        return quantlora.wrap(model, r=2)

    class Other:
        """Exports while the first one is at it."""

        def save_pretrained(self, folder: Path) -> None:
            quantlora.export_merged(plain(2.0), tmp_path / "out", max_shard_size=2000)

    with pytest.raises(MergeError, match="another export"):
        quantlora.export_merged(
            plain(1.0), tmp_path / "out", max_shard_size=2000, tokenizer=Other()
        )
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert {float(t.mean()) for file in files for t in load_file(file).values()} == {2.0}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
