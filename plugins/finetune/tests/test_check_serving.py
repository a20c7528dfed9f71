"""``quantlora check-serving``: which servers take an adapter, and what to type for the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import quantlora
from quantlora.testing.models import tiny_llama


@pytest.fixture
def adapter(tmp_path: Path):
    def saved(**settings: object) -> Path:
        quantlora.save_adapter(quantlora.wrap(tiny_llama(), **{"r": 4, **settings}), tmp_path)
        return tmp_path

    return saved


def test_a_plain_adapter_needs_a_file_of_its_own_for_llama_cpp_only(run, adapter):
    folder = adapter()
    result = run("check-serving", folder)
    assert result.exit_code == 0
    assert f"llama.cpp: quantlora export gguf {folder}" in result.output
    assert result.output.count("quantlora") == 1


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"use_rslora": True}, "SGLang: save_adapter(model, ..., portable=True)"),
        ({"use_dora": True}, "vLLM: quantlora merge {0} --output {0}-merged"),
        ({"use_dora": True}, "llama.cpp: quantlora export gguf {0} --merged"),
    ],
)
def test_what_helps_is_printed_and_the_status_is_one(run, adapter, settings, told):
    folder = adapter(**settings)
    result = run("check-serving", folder)
    assert result.exit_code == 1
    assert told.format(folder) in result.output


def test_one_engine_is_judged_alone(run, adapter):
    folder = adapter(use_rslora=True)
    assert run("check-serving", folder, "--engine", "vllm").exit_code == 0
    assert run("check-serving", folder, "--engine", "sglang").exit_code == 1
    wrong = run("check-serving", folder, "--engine", "vlm")
    assert "choose among vLLM, SGLang, llama.cpp" in " ".join(wrong.stderr.split())


def test_json_has_verdict_reasons_and_what_to_do(run, adapter):
    rows = json.loads(run("check-serving", adapter(r=32), "--json").stdout)
    assert rows[0] == {
        "engine": "vLLM",
        "verdict": "with an option",
        "reasons": ["it allows rank 16: start it with --max-lora-rank 32"],
        "do": [],
    }
