"""``quantlora inspect``: what a config alone tells, against the model it describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig
from typer.testing import CliRunner

import quantlora
from quantlora.cli import app
from quantlora.testing.models import tiny_llama

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "architectures": ["LlamaForCausalLM"],
    "dtype": "bfloat16",
}

BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.fixture
def folder(tmp_path: Path):
    """A folder with a config and no weights."""

    def make(**more: Any) -> str:
        LlamaConfig(**SHAPE, **more).save_pretrained(tmp_path)
        return str(tmp_path)

    return make


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["inspect", *arguments])
    assert done.exit_code == code, done.output
    return done.output


def facts(*arguments: str, code: int = 0) -> dict[str, Any]:
    return json.loads(run(*arguments, "--json", code=code))


def kinds(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {kind["name"]: kind for kind in found["kinds"]}


def test_the_numbers_are_those_of_the_wrapped_model(folder):
    place = folder()
    found = facts(place, "--rank", "4")
    model = AutoModelForCausalLM.from_config(LlamaConfig.from_pretrained(place))
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    quantlora.wrap(model, r=4)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found["adapter_parameters"] == trained


def test_like_layers_are_one_line_with_their_count(folder):
    found = kinds(facts(folder()))
    assert found["q_proj"]["count"] == 3
    assert found["k_proj"]["shape"] == [32, 64]
    assert found["down_proj"]["parameters"] == 3 * 64 * 160
    assert found["lm_head"]["reason"] == 'the output layer: "all-linear" leaves it out'


def test_a_float_checkpoint_shows_what_it_would_become(folder):
    found = facts(folder(), "--backend", "normalfloat", "--targets", "q_proj,v_proj")
    assert found["stored"] is None
    assert found["dtype"] == "bfloat16"
    assert kinds(found)["q_proj"]["format"] == "float -> normalfloat"
    assert kinds(found)["k_proj"]["reason"] == "not in target_modules"


def test_a_quantized_checkpoint_shows_its_format_and_settings(folder):
    found = facts(folder(quantization_config=BNB))
    assert found["stored"]["name"] == "bitsandbytes_4bit"
    assert found["stored"]["settings"]["bnb_4bit_quant_type"] == "nf4"
    assert kinds(found)["q_proj"]["format"] == "bitsandbytes_4bit"
    assert kinds(found)["lm_head"]["format"] == "float"


def test_layers_that_the_checkpoint_leaves_float_stay_float(folder):
    place = folder(quantization_config={**BNB, "llm_int8_skip_modules": ["v_proj", "lm_head"]})
    found = kinds(facts(place))
    assert found["v_proj"]["format"] == "float"
    assert found["k_proj"]["format"] == "bitsandbytes_4bit"


def test_a_format_nobody_reads_is_said_and_exits_with_1(folder):
    text = run(folder(quantization_config={"quant_method": "marvellous", "bits": 5}), code=1)
    assert "stored in format marvellous (bits 5); its backend is not available here" in text
    assert "no plugin reads format 'marvellous'." in text


def test_another_backend_than_the_checkpoints_is_said(folder):
    place = folder(quantization_config=BNB)
    found = facts(place, "--backend", "normalfloat", code=1)
    assert "the checkpoint is in format 'bitsandbytes_4bit'" in found["problem"]


def test_a_rank_above_a_layer_s_is_legal_and_said(folder):
    text = run(folder(), "--rank", "33")
    assert "wrap would warn: model.layers.0.self_attn.k_proj" in text
    assert "rank 33, layer 32 x 64" in text
    assert "wrap would" not in run(folder(), "--rank", "32")


def test_a_rank_above_a_layer_s_is_in_the_json(folder):
    (warning,) = facts(folder(), "--rank", "33")["warnings"]
    assert "no more rank than 32" in warning
    assert facts(folder(), "--rank", "32")["warnings"] == []


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("", "there is no config.json; is it a model's folder?"),
        ("./no-such-folder", "there is no folder no-such-folder (looked in"),
        ("no-such-org/model", "or give a folder."),
    ],
)
def test_no_config_is_an_error_that_says_what_to_give(tmp_path, place, message):
    done = CliRunner().invoke(app, ["inspect", place or str(tmp_path)])
    assert done.exit_code == 1
    assert message in done.stderr


def test_an_adapters_folder_is_answered_by_what_loads_it(tmp_path):
    quantlora.save_adapter(quantlora.wrap(tiny_llama(), r=2), tmp_path)
    text = run(str(tmp_path))
    assert "load_adapter(model, " in text
    assert f"quantlora chat {tmp_path}" in text.replace("\n", "")


def test_memory_in_a_format_is_that_of_the_packed_model(folder):
    place = folder()
    found = {(one["format"], one["bits"]): one for one in facts(place)["sizes"]}
    model = AutoModelForCausalLM.from_config(LlamaConfig.from_pretrained(place))
    layer = (
        quantlora.registry()
        .quantizers["normalfloat"]
        .quantize(model.model.layers[0].mlp.up_proj.float(), bits=2)
    )
    bytes_used = sum(t.numel() * t.element_size() for t in layer.state_dict().values())
    size = found["normalfloat", 2]
    assert size["measured"]
    assert size["bytes_per_weight"] == pytest.approx(bytes_used / (64 * 160), rel=0.05)


def test_the_tables_fit_on_paper(folder):
    text = run(folder())
    assert "LlamaForCausalLM" in text
    assert "Memory of the weights" in text
