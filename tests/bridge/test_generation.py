"""``model.generate(..., adapter_names=[...])``: each prompt as if it were alone, and as in PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import quantlora
from quantlora.errors import AdapterError
from quantlora.layers.sub_batch import sub_batches
from quantlora.testing.models import tiny_llama
from tests.tools.peft_oracle import pair

BACKENDS = ["auto", "bitsandbytes_4bit", "bitsandbytes_8bit", "normalfloat"]
NAMES = ["default", "__base__", "second", "second", "default"]
LENGTHS = [5, 9, 4, 7, 9]
GREEDY: dict[str, Any] = {
    "max_new_tokens": 6,
    "min_new_tokens": 6,
    "do_sample": False,
    "pad_token_id": 2,
}


def prompts() -> list[Tensor]:
    torch.manual_seed(9)
    return [torch.randint(3, 80, (1, length)) for length in LENGTHS]


def padded() -> dict[str, Tensor]:
    """All prompts in one batch, padded on the left."""
    ids, mask = torch.full((5, 9), 2), torch.zeros(5, 9, dtype=torch.long)
    for row, prompt in enumerate(prompts()):
        ids[row, -prompt.shape[1] :], mask[row, -prompt.shape[1] :] = prompt[0], 1
    return {"input_ids": ids, "attention_mask": mask}


def two_adapters(backend: str = "auto") -> Any:
    fields: dict[str, Any] = {"init_lora_weights": False, "lora_alpha": 40}
    model = quantlora.wrap(tiny_llama(), backend=backend, r=4, **fields)
    return quantlora.wrap(model, adapter_name="second", r=2, use_dora=True, **fields).eval()


def alone(model: Any, name: str, prompt: Tensor, **options: Any) -> Tensor:
    quantlora.set_adapter(model, [] if name == "__base__" else name)
    mask = torch.ones_like(prompt)
    return model.generate(prompt, attention_mask=mask, **{**GREEDY, **options})[
        :, prompt.shape[1] :
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_prompt_is_generated_as_if_it_were_alone(backend: str) -> None:
    model = two_adapters(backend)
    together = model.generate(**padded(), adapter_names=NAMES, **GREEDY)[:, 9:]
    wanted = [alone(model, name, one) for name, one in zip(NAMES, prompts(), strict=True)]
    assert torch.equal(together, torch.cat(wanted))
    assert len({tuple(row.tolist()) for row in together}) > 2


def test_it_agrees_with_peft(tmp_path: Path) -> None:
    adapters = {"default": {"r": 4, "lora_alpha": 40}, "second": {"r": 2, "use_rslora": True}}
    both = pair(tmp_path, adapters)
    found = both.ours.eval().generate(**padded(), adapter_names=NAMES, **GREEDY)
    wanted = both.theirs.eval().generate(**padded(), adapter_names=NAMES, **GREEDY)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_beams_go_through_the_adapter_of_their_prompt(options: dict[str, int]) -> None:
    model = two_adapters()
    found = model.generate(**padded(), adapter_names=NAMES, **GREEDY, **options)[:, 9:]
    every = zip(NAMES, prompts(), strict=True)
    wanted = [alone(model, name, prompt, **options) for name, prompt in every]
    assert torch.equal(found, torch.cat(wanted))


def test_the_names_hold_for_one_call_only() -> None:
    model = two_adapters()
    before = model(padded()["input_ids"]).logits
    model.generate(**padded(), adapter_names=NAMES, **GREEDY)
    assert torch.equal(model(padded()["input_ids"]).logits, before)


def test_a_wrong_number_of_names_is_an_error() -> None:
    model = two_adapters()
    with pytest.raises(AdapterError, match="2 entries"):
        model.generate(**padded(), adapter_names=NAMES[:2], **GREEDY)


def test_a_model_that_nobody_keeps_says_so() -> None:
    with pytest.raises(AdapterError, match="keep it in a variable"):
        two_adapters().generate(**padded())


def test_an_unloaded_model_generates_by_itself() -> None:
    model = quantlora.unload(two_adapters())
    assert "generate" not in vars(model)


def encoder_decoder(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "t5":
        config: Any = transformers.T5Config(
            vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4,
            decoder_start_token_id=0,
        )  # fmt: skip
        model: Any = transformers.T5ForConditionalGeneration(config)
    else:
        config = transformers.BartConfig(
            vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=64,
            decoder_ffn_dim=64, encoder_attention_heads=4, decoder_attention_heads=4,
            max_position_embeddings=64, pad_token_id=0, eos_token_id=2,
            decoder_start_token_id=2, forced_eos_token_id=None,
        )  # fmt: skip
        model = transformers.BartForConditionalGeneration(config)
    fields: dict[str, Any] = {"init_lora_weights": False, "lora_alpha": 40, "r": 4}
    for name, seed in (("default", 1), ("second", 2)):
        torch.manual_seed(seed)
        quantlora.wrap(model, adapter_name=name, **fields)
    return model.eval()


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 2}, {"num_beams": 3, "num_return_sequences": 2}]
)
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_beams_of_an_encoder_decoder_go_through_their_prompts_adapter(kind, options) -> None:
    model = encoder_decoder(kind)
    torch.manual_seed(3)
    ids = torch.randint(3, 60, (3, 5))
    options = {**GREEDY, "pad_token_id": 0, "eos_token_id": None, **options}
    names = ["default", "second", "__base__"]
    together = model.generate(input_ids=ids, adapter_names=names, **options)
    for i, name in enumerate(names):
        quantlora.set_adapter(model, [] if name == "__base__" else name)
        each = len(together) // 3
        assert torch.equal(
            model.generate(input_ids=ids[i : i + 1], **options), together[i * each :][:each]
        )


def test_sampled_repeats_go_through_their_prompts_adapter() -> None:
    model = encoder_decoder("t5")
    seen: list[Any] = []

    def note(layer: Any, inputs: Any) -> None:
        seen.append(sub_batches(layer.sample_adapters, layer.adapters, inputs[0], ""))

    model.decoder.block[0].layer[0].SelfAttention.q.register_forward_pre_hook(note)
    ids = torch.randint(3, 60, (2, 5))
    options = {**GREEDY, "do_sample": True, "num_return_sequences": 3}
    model.generate(input_ids=ids, adapter_names=["second", "default"], **options)
    assert {name: rows.tolist() for name, rows in seen[-1]} == {
        "default": [3, 4, 5],
        "second": [0, 1, 2],
    }


def test_an_assistant_helps_with_one_prompt() -> None:
    model = two_adapters()
    prompt = prompts()[0]
    wanted = alone(model, "second", prompt)
    helped = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), adapter_names=["second"],
        assistant_model=tiny_llama().eval(), **GREEDY,
    )  # fmt: skip
    assert torch.equal(helped[:, prompt.shape[1] :], wanted)


@pytest.mark.parametrize("options", [{"custom_generate": "owner/search"}, {"penalty_alpha": 0.6}])
def test_a_generation_of_another_order_is_refused(options: dict[str, Any]) -> None:
    model = two_adapters()
    with pytest.raises(AdapterError, match="orders the batch its own way"):
        model.generate(**padded(), adapter_names=NAMES, **options)


def test_beams_of_a_model_with_a_generate_of_its_own_are_refused() -> None:
    class Own(transformers.LlamaForCausalLM):
        def generate(self, *args: Any, **kwargs: Any) -> Any:
            return super().generate(*args, **kwargs)

    model = quantlora.wrap(Own(tiny_llama().config), r=2)
    with pytest.raises(AdapterError, match="has a generate of its own"):
        model.generate(**padded(), adapter_names=["default"] * 5, num_beams=2)
