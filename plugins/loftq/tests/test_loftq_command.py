"""``quantlora loftq``: every family, loaded by Transformers with PEFT, and by quantlora."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import quantlora
from quantlora.cli import app

sys.path.insert(0, str(Path(__file__).parent))
from families import FAMILIES, logits, make

#: Families whose layers Transformers does not replace by bitsandbytes'; they are saved dense.
NOT_FOR_BNB = ("falcon",)


def run(*arguments):
    done = CliRunner().invoke(app, ["loftq", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return Path(done.stdout.strip().splitlines()[-1])


def saved(family, folder, **changes):
    model = make(family, **changes)
    model.save_pretrained(folder / family)
    return folder / family


def loftq(folder, *arguments, rank=8, alpha=16):
    return run("--model", folder, "--save-dir", folder.parent / "out", "--rank", rank,
               "--alpha", alpha, *arguments)  # fmt: skip


def with_quantlora(family, result):
    import quantlora_normalfloat

    quantlora_normalfloat.register()
    model = FAMILIES[family][0].from_pretrained(result).eval()
    quantlora.load_adapter(model, result / "loftq_init")
    return model


def effective(layer):
    A, B = (table["default"].weight.detach() for table in (layer.lora_A, layer.lora_B))
    return layer.dequantize() + layer.scaling["default"] * B @ A


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_with_peft_and_bitsandbytes_and_agrees_with_ours(family, tmp_path):
    pytest.importorskip("bitsandbytes")
    peft = pytest.importorskip("peft")
    dense = ["--fake"] if family in NOT_FOR_BNB else []
    result = loftq(saved(family, tmp_path), "--bits", 4, "--iter", 2, *dense)
    plain = FAMILIES[family][0].from_pretrained(result)
    theirs = peft.PeftModel.from_pretrained(plain, result / "loftq_init").eval()
    assert relative(logits(theirs), logits(with_quantlora(family, result))) < 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_nearer_to_the_float_model_at_two_bits(family, tmp_path):
    folder = saved(family, tmp_path)
    result = loftq(folder, "--bits", 2, "--iter", 2, rank=16)
    model, floats = with_quantlora(family, result), dict(make(family).named_parameters())
    for path, layer in quantlora.lora_layers(model):
        weight = floats[f"{path}.weight"].detach()
        assert relative(effective(layer), weight) < relative(layer.dequantize(), weight)


def test_a_family_that_transformers_cannot_load_so_is_refused_before_the_work(tmp_path):
    folder = saved("falcon", tmp_path)
    arguments = ["loftq", "--model", str(folder), "--save-dir", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert "FalconLinear" in done.output
    assert not (tmp_path / "out").exists()


def test_the_folder_is_laid_out_as_on_the_loftq_hub(tmp_path):
    from quantlora.testing.models import tiny_tokenizer

    folder = saved("llama", tmp_path)
    tiny_tokenizer().save_pretrained(folder)
    result = loftq(folder, "--bits", 4, rank=4)
    assert result.name == "llama-4bit-4rank"
    names = {str(file.relative_to(result)) for file in result.rglob("*") if file.is_file()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "loftq_report.json"} <= names
    assert {"loftq_init/adapter_config.json", "loftq_init/adapter_model.safetensors"} <= names
    assert not (result / ".parts").exists()


def test_alpha_is_carried_to_both_sides(tmp_path):
    folder = saved("llama", tmp_path)
    updates = []
    for alpha in (4, 32):
        result = loftq(folder, "--bits", 4, "--iter", 1, rank=8, alpha=alpha)
        config = json.loads((result / "loftq_init" / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (8, alpha)
        updates.append(logits(with_quantlora("llama", result)))
        result.rename(tmp_path / f"alpha{alpha}")
    torch.testing.assert_close(*updates, atol=1e-3, rtol=1e-3)


def test_fake_is_dense_and_needs_no_backend_to_load(tmp_path):
    folder = saved("llama", tmp_path)
    packed = loftq(folder, "--bits", 2, "--iter", 2)
    reference = logits(with_quantlora("llama", packed))
    packed.rename(tmp_path / "packed")
    dense = loftq(folder, "--bits", 2, "--iter", 2, "--fake")
    assert "quantization_config" not in json.loads((dense / "config.json").read_text())
    model = with_quantlora("llama", dense)
    torch.testing.assert_close(logits(model), reference, atol=1e-3, rtol=1e-3)


def test_bits_by_pattern_give_the_papers_mixed_precision(tmp_path):
    arguments = ["--bits", 2, "--bits-pattern", r"layers\.0\..*=4"]
    model = with_quantlora("llama", loftq(saved("llama", tmp_path), *arguments))
    bits = {
        path.split(".")[2]: layer.base_layer.bits for path, layer in quantlora.lora_layers(model)
    }
    assert bits == {"0": 4, "1": 2}


def test_a_sharded_model_is_read_and_written(tmp_path):
    make("llama").save_pretrained(tmp_path / "llama", max_shard_size="100KB")
    assert (tmp_path / "llama" / "model.safetensors.index.json").exists()
    result = loftq(tmp_path / "llama", "--bits", 4, "--max-shard-size", "50KB")
    assert len(list(result.glob("model-*.safetensors"))) > 1
    assert logits(with_quantlora("llama", result)).isfinite().all()


def test_a_half_precision_model_keeps_its_dtype(tmp_path):
    make("llama").to(torch.bfloat16).save_pretrained(tmp_path / "llama")
    result = loftq(tmp_path / "llama", "--bits", 3)
    stored = load_file(result / "model.safetensors")
    assert stored["model.norm.weight"].dtype == torch.bfloat16
    model = with_quantlora("llama", result)
    assert model.dtype == torch.bfloat16
    _, layer = next(quantlora.lora_layers(model))
    assert layer.base_layer.scales().dtype == torch.float32


def test_the_report_has_the_errors_of_every_layer(tmp_path):
    pytest.importorskip("matplotlib")
    result = loftq(saved("llama", tmp_path), "--bits", 4, "--iter", 2)
    report = json.loads((result / "loftq_report.json").read_text())
    assert len(report["layers"]) == 14
    assert all(one["loftq_error"] < one["quantized_error"] for one in report["layers"])
    assert (result / "loftq_report.png").stat().st_size > 1000
