"""`check_serving`: what five servers would do with an adapter."""

from __future__ import annotations

from pathlib import Path

import pytest

import quantlora
from quantlora import Effect, Remedy
from quantlora.errors import AdapterFileError
from quantlora.testing.models import tiny_llama


def verdicts(folder: Path, **settings: object) -> dict[str, quantlora.ServingVerdict]:
    quantlora.save_adapter(quantlora.wrap(tiny_llama(), **{"r": 4, **settings}), folder)
    return {verdict.engine: verdict for verdict in quantlora.check_serving(folder)}


def test_a_plain_adapter_is_taken_by_all(tmp_path):
    found = verdicts(tmp_path)
    assert list(found) == ["vLLM", "SGLang", "llama.cpp", "LMDeploy", "TensorRT-LLM"]
    assert not any(verdict.reasons for verdict in found.values())
    assert {verdict.effect for verdict in found.values()} == {Effect.NONE}


@pytest.mark.parametrize(
    ("settings", "effects"),
    [
        ({"use_rslora": True}, ["yes", "wrong, without a word", "yes", "yes", "yes"]),
        (
            {"alpha_pattern": {"q_proj": 3}},
            ["wrong, without a word", "wrong, without a word", "yes", "yes", "not known"],
        ),
        ({"r": 32}, ["with an option", "with an option", "yes", "yes", "with an option"]),
        ({"use_dora": True}, ["no"] * 5),
        ({"bias": "lora_only"}, ["no"] * 5),
        ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, ["no"] * 5),
        ({"trainable_token_indices": [3]}, ["no"] * 5),
        ({"target_modules": ["embed_tokens"]}, ["yes", "yes", "yes", "no", "not known"]),
    ],
)
def test_each_server_does_what_its_source_says(tmp_path, settings, effects):
    assert [verdict.effect.value for verdict in verdicts(tmp_path, **settings).values()] == effects


def test_what_helps_is_named(tmp_path):
    assert {r.remedy for r in verdicts(tmp_path / "a", use_rslora=True)["SGLang"].reasons} == {
        Remedy.PORTABLE
    }
    [reason] = verdicts(tmp_path / "b", r=32)["vLLM"].reasons
    assert reason.text == "it allows rank 16: start it with --max-lora-rank 32"


def test_a_portable_file_is_taken_by_all(tmp_path):
    model = quantlora.wrap(tiny_llama(), r=4, use_rslora=True, rank_pattern={"q_proj": 2})
    quantlora.save_adapter(model, tmp_path, portable=True)
    assert {v.effect for v in quantlora.check_serving(tmp_path)} == {Effect.NONE}


def test_a_changed_base_is_served_wrongly_everywhere(tmp_path):
    model = quantlora.wrap(tiny_llama(), r=4, init_lora_weights="pissa")
    quantlora.save_adapter(model, tmp_path, convert=False)
    found = quantlora.check_serving(tmp_path)
    assert {v.effect for v in found} == {Effect.WRONG}
    assert {r.remedy for v in found for r in v.reasons} == {Remedy.CONVERT}


def test_a_folder_without_an_adapter_is_an_error(tmp_path):
    with pytest.raises(AdapterFileError):
        quantlora.check_serving(tmp_path)
