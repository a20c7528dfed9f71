"""What users run into: the report says it beforehand, `wrap` when it happens, with one remedy."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import quantlora
from quantlora.env import machine
from quantlora.merging.rounding import ROUNDING
from tests.env.faulty_environment import Environment


def gptqmodel(environment: Environment, version: str) -> dict:
    environment.put("gptqmodel", version, {"gptqmodel/__init__.py": ""})
    environment.put("optimum", "2.3.0", {"optimum/__init__.py": ""})
    return environment.ask("gptq")


def test_kernels_that_cannot_train_have_the_remedy_of_wraps_error(environment):
    from quantlora_gptq.requires import REMEDY

    notes = gptqmodel(environment, "7.6.0")["notes"]
    assert any("Marlin, Machete, ExLlama" in one["text"] for one in notes)
    assert REMEDY["gptqmodel"] in [one["fix"] for one in notes]


@pytest.mark.parametrize(
    ("version", "count"),
    [
        ("2.0.0", 2),
        pytest.param("5.8.0", 1, marks=pytest.mark.slow),
        pytest.param("7.6.0", 0, marks=pytest.mark.slow),
    ],
)
def test_versions_that_read_a_checkpoint_wrong_are_named_with_the_errors_remedy(
    environment, version, count
):
    from quantlora_gptq.requires import WRONG_READINGS

    notes = gptqmodel(environment, version)["notes"]
    wrong = [one for one in notes if "checkpoints of the format 'gptq' wrong" in one["text"]]
    assert len(wrong) == count
    assert {one["fix"] for one in wrong} <= {one.fix for one in WRONG_READINGS}


@pytest.mark.slow
@pytest.mark.parametrize("text", ["exllama_kernels not installed", "ExLlama kernel not available"])
def test_missing_exllama_kernels_are_explained(environment, text):
    environment.put("gptqmodel", "7.6.0", {"gptqmodel/__init__.py": f"raise ImportError({text!r})"})
    environment.put("optimum", "2.3.0", {"optimum/__init__.py": ""})
    found = environment.ask("gptq")
    assert "the ExLlama kernels are not available" in found["error"]
    assert "GPTQConfig(bits=..., use_exllama=False)" in found["error"]


def test_without_scipy_loftq_is_degraded(environment):
    environment.remove("scipy")
    found = environment.ask("loftq")
    assert found["status"] == "DEGRADED"
    assert "The required package 'scipy' is not installed." in found["reason"]
    assert found["fix"] == 'pip install "quantlora[loftq]"'


def loftq_notes(run_python) -> list[dict]:
    done = run_python("-m", "quantlora.env", "--json", "--backend", "loftq")
    return json.loads(done.stdout)["backends"][0]["notes"]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "`loftq_config` must be specified when `init_lora_weights` is 'loftq'."),
        (
            {"loftq_config": {"loftq_bits": 5}},
            "bits quantization, and backend 'normalfloat' offers",
        ),
    ],
)
def test_loftqs_mistakes_have_the_remedy_of_the_report(run_python, fields, text):
    model = nn.Sequential(nn.Linear(64, 64))
    with pytest.raises(quantlora.ConfigError) as caught:
        quantlora.wrap(model, backend="normalfloat", init_lora_weights="loftq", **fields)
    assert text in str(caught.value)
    fixes = [one["fix"] for one in loftq_notes(run_python)]
    assert str(caught.value).rsplit("\n", 1)[-1] in fixes


def test_merge_rounding_is_in_every_report_with_the_remedy_of_the_warning(run_python):
    done = run_python("-m", "quantlora.env", "--json")
    assert ROUNDING.fix in [one["fix"] for one in json.loads(done.stdout)["notes"]]
    model = quantlora.wrap(nn.Sequential(nn.Linear(64, 64)), backend="normalfloat", r=2)
    with torch.no_grad():
        model[0].lora_B["default"].weight.normal_(std=1e-6)
    with pytest.warns(UserWarning, match="merging lost most") as caught:
        quantlora.merge(model)
    assert any(ROUNDING.fix in str(one.message) for one in caught)


@pytest.mark.parametrize("has", [True, False])
def test_repacking_on_a_cpu_is_noted_where_the_processor_does_it(monkeypatch, has):
    from quantlora_bnb.requires import REPACKED, repacks_here

    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(quantlora, "cpu_flags", lambda: {"avx512_bf16": has}, raising=False)
    assert list(repacks_here()) == ([REPACKED] if has else [])
    assert machine.FLAGS["avx512_bf16"]


def test_a_repacked_layer_is_warned_about_with_the_reports_words():
    bnb = pytest.importorskip("bitsandbytes")
    from quantlora_bnb.requires import REPACKED

    layer = quantlora.registry().quantizers["bitsandbytes_4bit"].quantize(nn.Linear(64, 64))
    model = nn.Sequential(layer).eval()
    with torch.no_grad():
        model(torch.randn(1, 64, dtype=torch.bfloat16))
    if not getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        pytest.skip(f"bitsandbytes {bnb.__version__} does not repack on this processor")
    with pytest.warns(UserWarning, match="rounded") as caught:
        quantlora.wrap(model, r=2)
    assert str(REPACKED) in [str(one.message) for one in caught]
