"""``quantlora export gguf --merged``: a model file that gives the merged model back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import quantlora
from quantlora.cli import app
from tests.tools.versions import IS_TRANSFORMERS_5

pytest.importorskip("gguf")
pytest.importorskip("accelerate")
if not IS_TRANSFORMERS_5:
    pytest.skip("loads with Transformers 5", allow_module_level=True)

import gguf
from transformers import AutoModelForCausalLM

from .byte_tokenizer import byte_tokenizer
from .test_export import read, saved
from .tiny_files import write_tiny

IDS = torch.arange(7)[None]
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")


def exported(folder: Path, *options: str) -> Path:
    given = ["export", "gguf", str(folder / "adapter"), "--merged", *options]
    result = CliRunner().invoke(app, [*given, "--output", str(folder / "out")])
    assert result.exit_code == 0, result.output
    [file] = (folder / "out").glob("*.gguf")
    return file


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits
    return found


@pytest.mark.parametrize("model_type", FAMILIES)
def test_transformers_reads_the_merged_model_back(tmp_path, model_type):
    model = saved(tmp_path, model_type, r=4, use_rslora=True)
    byte_tokenizer(96).save_pretrained(tmp_path / "base")
    file = exported(tmp_path, "--type", "F32")
    arguments: dict[str, Any] = {"gguf_file": file.name, "dtype": torch.float32}
    found = AutoModelForCausalLM.from_pretrained(file.parent, **arguments)
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-4, atol=1e-4)


def test_experts_are_split_into_three_stacks(tmp_path):
    model = saved(tmp_path, "mixtral", r=4)
    byte_tokenizer(96).save_pretrained(tmp_path / "base")
    _, tensors = read(exported(tmp_path, "--type", "F32"))
    experts = quantlora.merge_and_unload(model).model.layers[1].mlp.experts
    gate, up = experts.gate_up_proj.double().chunk(2, dim=1)
    wanted = {"gate": gate, "up": up, "down": experts.down_proj.double()}
    for name, values in wanted.items():
        torch.testing.assert_close(tensors[f"blk.1.ffn_{name}_exps.weight"], values)


@pytest.mark.parametrize("block_type", ["Q8_0", "Q4_0", "BF16"])
def test_matrices_have_the_type_asked_for(tmp_path, block_type):
    saved(tmp_path, "llama", r=4)
    byte_tokenizer(96).save_pretrained(tmp_path / "base")
    reader = gguf.GGUFReader(exported(tmp_path, "--type", block_type))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.attn_q.weight"] == block_type
    assert kinds["output.weight"] == ("Q8_0" if block_type == "Q4_0" else block_type)
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def test_over_a_gguf_file_its_metadata_are_kept(tmp_path):
    path = write_tiny(tmp_path, "llama")
    model = quantlora.wrap(quantlora.load(path), r=2)
    torch.nn.init.normal_(model.model.layers[0].mlp.up_proj.lora_B["default"].weight)
    quantlora.save_adapter(model, tmp_path / "adapter")
    file = exported(tmp_path, "--type", "F32")
    before, after = (gguf.GGUFReader(p).fields for p in (path, file))
    kept = [key for key in before if not key.startswith("GGUF.")]
    assert {k: after[k].contents() for k in kept} == {k: before[k].contents() for k in kept}
    torch.testing.assert_close(logits(quantlora.load(file)), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("like", [False, True])
def test_the_template_of_the_training_is_in_the_file(tmp_path, like):
    saved(tmp_path, "llama", r=4)
    byte_tokenizer(96).save_pretrained(tmp_path / "base")
    other = ["--base", str(write_tiny(tmp_path, "llama"))] if like else []
    (tmp_path / "adapter" / "chat_template.jinja").write_text("{{ messages }} as learned")
    metadata, _ = read(exported(tmp_path, *other))
    assert metadata["tokenizer.chat_template"] == "{{ messages }} as learned"


def test_the_tokenizer_is_in_the_file(tmp_path):
    saved(tmp_path, "llama", r=4)
    tokenizer = byte_tokenizer(96)
    tokenizer.save_pretrained(tmp_path / "base")
    metadata, _ = read(exported(tmp_path))
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.pre"] == "gpt-2"
    tokens = metadata["tokenizer.ggml.tokens"]
    assert [tokens[i] for i in range(len(tokenizer))] == tokenizer.convert_ids_to_tokens(
        list(range(len(tokenizer)))
    )
    assert len(tokens) == 96


@pytest.mark.parametrize("what", ["tokenizer", "architecture"])
def test_what_llama_cpp_has_no_name_for_is_refused(tmp_path, what):
    from quantlora.testing.models import tiny_tokenizer

    saved(tmp_path, "llama", r=4)
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    if what == "architecture":
        config.write_text(config.read_text().replace('"silu"', '"relu"'))
    result = CliRunner().invoke(app, ["export", "gguf", str(tmp_path / "adapter"), "--merged"])
    assert result.exit_code == 1
    why = {"tokenizer": "is no BPE tokenizer", "architecture": "its activation is 'relu'"}[what]
    said = " ".join(result.output.split())
    assert why in said
    assert "--base" in said
    assert not (tmp_path / "adapter-gguf").exists()
