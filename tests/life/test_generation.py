"""``model.generate(..., adapter_names=[...])``: each prompt as if it were alone, and as in PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import quantlora
from quantlora.errors import AdapterError
from quantlora.testing.models import tiny_llama
from tests.life.peft_oracle import pair

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
