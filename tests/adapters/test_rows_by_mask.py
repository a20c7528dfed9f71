"""Rows that are as many as the samples by chance: refused in a mixed batch, or told."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import transformers

import quantlora
from quantlora.errors import AdapterError, AdapterWarning
from tests.tools.peft_oracle import relative

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
TOKENS: dict[str, Any] = {"vocab_size": 64, "pad_token_id": 0}


def with_two(model: Any, targets: Any) -> Any:
    for name in "ab":
        fields = {"r": 2, "init_lora_weights": False, "target_modules": targets}
        quantlora.wrap(model, adapter_name=name, **fields)
    return model.double().eval()


def masked_model(targets: Any) -> Any:
    more = dict.fromkeys(("cls_token_id", "bos_token_id"), 1)
    more |= dict.fromkeys(("sep_token_id", "eos_token_id"), 2)
    config = transformers.ModernBertConfig(**SIZES, **TOKENS, **more, sparse_prediction=True)
    torch.manual_seed(0)
    return with_two(transformers.ModernBertForMaskedLM(config), targets)


def llava(targets: Any) -> Any:
    vision = transformers.CLIPVisionConfig(**SIZES, image_size=16, patch_size=8)
    text = transformers.LlamaConfig(**SIZES, **TOKENS)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=63, image_token_index=63
    )
    torch.manual_seed(0)
    return with_two(transformers.LlavaForConditionalGeneration(config), targets)


def test_a_head_of_masked_tokens_is_refused() -> None:
    model = masked_model(["dense", "Wqkv"])
    refused = pytest.raises(AdapterError, match=r"^head.dense: this head gets masked tokens alone")
    with refused, quantlora.mixed_batch(model, ["a", "b"]):
        raise AssertionError("not refused")


def test_the_encoder_beside_it_is_not() -> None:
    model, ids = masked_model(["Wqkv"]), torch.randint(3, 60, (2, 6))
    labels = torch.full((2, 6), -100)
    labels[0, 1] = labels[0, 3] = 5
    quantlora.set_adapter(model, "a")
    wanted = model(input_ids=ids, labels=labels).logits
    with quantlora.mixed_batch(model, ["a", "b"]):
        found = model(input_ids=ids, labels=labels).logits
    assert relative(found.detach(), wanted.detach()) <= 1e-9


@pytest.mark.parametrize("targets", [r".*vision.*q_proj", r".*projector.linear_1"])
def test_a_tower_for_images_is_told(targets: str) -> None:
    with (
        pytest.warns(AdapterWarning, match="is in a tower for images or sounds"),
        quantlora.mixed_batch(llava(targets), ["a", "b"]),
    ):
        pass


def test_the_text_model_behind_it_is_not() -> None:
    model = llava(r".*language_model.*q_proj")
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdapterWarning)
        with quantlora.mixed_batch(model, ["a", "b"]):
            pass


def with_images(*counts: int) -> dict[str, Any]:
    """So many images in each sample: four tokens for one."""
    torch.manual_seed(1)
    ids = torch.randint(3, 60, (len(counts), 10))
    for row, count in zip(ids, counts, strict=True):
        row[1 : 1 + 4 * count] = 63
    images = torch.randn(sum(counts), 3, 16, 16, dtype=torch.float64)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": images}


@pytest.mark.filterwarnings("ignore:.*tower for images")
@pytest.mark.parametrize("targets", [r".*vision.*q_proj", r".*projector.linear_1"])
def test_images_that_are_as_many_as_the_samples_by_chance_are_refused(targets: str) -> None:
    model, two_in_one = llava(targets), with_images(2, 0)
    for call in (model, lambda **batch: model.generate(**batch, max_new_tokens=2)):
        with pytest.raises(AdapterError, match=r"samples \[0\] have one and the others none"):
            call(**two_in_one, adapter_names=["a", "b"])
    with (
        pytest.raises(AdapterError, match="others none"),
        quantlora.mixed_batch(model, ["a", "__base__"]),
    ):
        model(**two_in_one)
    model(**two_in_one, adapter_names=["a", "a"])
    model(**two_in_one)


@pytest.mark.filterwarnings("ignore:.*tower for images")
@pytest.mark.parametrize("targets", [r".*vision.*q_proj", r".*(projector.linear_1|v_proj)"])
def test_with_an_image_in_each_sample_each_is_as_alone(targets: str) -> None:
    model, batch = llava(targets), with_images(1, 1)
    found = model(**batch, adapter_names=["a", "b"]).logits
    for i, name in enumerate("ab"):
        quantlora.set_adapter(model, name)
        wanted = model(**batch).logits[i]
        assert relative(found[i].detach(), wanted.detach()) <= 1e-9


@pytest.mark.filterwarnings("error")
def test_adapters_behind_the_tower_take_any_number_of_images() -> None:
    model, batch = llava(r".*language_model.*q_proj"), with_images(2, 0)
    found = model(**batch, adapter_names=["a", "b"]).logits
    quantlora.set_adapter(model, "b")
    assert relative(found[1].detach(), model(**batch).logits[1].detach()) <= 1e-9
