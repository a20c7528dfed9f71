"""`export_merged` of models that take more than `input_ids`: inputs come from their signature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import quantlora
from quantlora.errors import AdapterWarning, MergeError
from quantlora.files.shards import ShardWriter
from tests.compatibility.families import classes
from tests.compatibility.tiny_config import tiny_config

ARCHITECTURES = ["t5", "whisper", "bart", "vit", "wav2vec2", "clip", "qwen2_vl", "layoutlm"]
T5_HEADS = [
    "T5ForConditionalGeneration",
    "T5EncoderModel",
    "T5ForSequenceClassification",
    "T5ForTokenClassification",
    "T5ForQuestionAnswering",
    "T5Model",
]
BART_HEADS = [
    "BartForConditionalGeneration",
    "BartForSequenceClassification",
    "BartForQuestionAnswering",
    "BartForCausalLM",
]


def wrapped(model_type: str, head: str | None = None) -> Any:
    import transformers

    config_class, model_class = classes(model_type)
    torch.manual_seed(0)
    cls: Any = getattr(transformers, head) if head else model_class
    model = cls(tiny_config(config_class)).double()
    return quantlora.wrap(model, r=2, init_lora_weights=False).eval()


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_an_architecture_is_exported_and_compared(model_type: str, tmp_path: Path) -> None:
    report = quantlora.export_merged(wrapped(model_type), tmp_path / "merged")
    assert report.check.logits <= 1e-9
    assert max(report.check.weights.values()) <= 1e-9


@pytest.mark.parametrize("head", [*T5_HEADS, *BART_HEADS])
def test_every_head_is_exported_and_compared(head: str, tmp_path: Path) -> None:
    model = wrapped("t5" if head.startswith("T5") else "bart", head)
    assert quantlora.export_merged(model, tmp_path / "merged").check.logits <= 1e-9


def damage(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Let exports be written with the tensors named ``part`` half as large again."""

    def write(self: ShardWriter, tensors: Any) -> None:
        honest(self, ((name, t * 1.5 if part in name else t) for name, t in tensors))

    honest = ShardWriter.write
    monkeypatch.setattr(ShardWriter, "write", write)


@pytest.mark.parametrize("part", ["fc1", "out_proj", "embed_tokens"])
def test_damage_in_a_decoder_is_found_out(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(monkeypatch, f"decoder.{'layers.0.' if part != 'embed_tokens' else ''}")
    with pytest.raises(MergeError, match="loaded again"):
        quantlora.export_merged(wrapped("whisper"), tmp_path / "merged")


def test_damage_in_layers_that_no_input_reaches_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(monkeypatch, "visual.blocks.0.attn.proj.weight")
    with pytest.raises(MergeError, match="its weights are not those written"):
        quantlora.export_merged(wrapped("qwen2_vl"), tmp_path / "merged")


def unanswered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model for which no inputs can be made."""
    model = wrapped("bert")
    monkeypatch.setattr(type(model), "main_input_name", "clicks")
    monkeypatch.setattr(type(model), "forward", lambda self, clicks: clicks.missing)
    return model


def test_without_inputs_the_tensors_are_compared_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = unanswered(monkeypatch)
    with pytest.warns(AdapterWarning, match="no inputs could be made for Bert"):
        check = quantlora.export_merged(model, tmp_path / "merged").check
    assert check.logits is None
    assert "bert.embeddings.word_embeddings.weight" in check.weights


def test_without_inputs_a_damaged_tensor_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(monkeypatch, "position_embeddings")
    with (
        pytest.warns(AdapterWarning, match="no inputs"),
        pytest.raises(MergeError, match="position_embeddings"),
    ):
        quantlora.export_merged(unanswered(monkeypatch), tmp_path / "merged")


def test_an_inactive_adapter_is_compared_as_it_is_exported(tmp_path: Path) -> None:
    model = quantlora.wrap(wrapped("bert"), adapter_name="second", init_lora_weights=False)
    check = quantlora.export_merged(model, tmp_path / "merged", adapters="default").check
    assert check.logits <= 1e-9
    assert quantlora.active_adapters(model) == ["second"]


def test_a_class_that_transformers_loads_in_two_dtypes_is_exported(tmp_path: Path) -> None:
    """Parameters that XLNet makes as ``torch.FloatTensor`` stay float32 in ``from_pretrained``."""
    from transformers import XLNetConfig, XLNetLMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}
    model = XLNetLMHeadModel(XLNetConfig(**sizes)).double()
    quantlora.wrap(model, r=2, target_modules=["layer_1"], init_lora_weights=False)
    with pytest.warns(AdapterWarning, match=r"call model.to\(torch.float64\) after from_pre"):
        report = quantlora.export_merged(model, tmp_path / "merged")
    assert report.check is not None
    assert report.check.logits is not None
    assert report.check.logits < 1e-6
