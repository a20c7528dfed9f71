"""Float layers beside PEFT's in other dtypes, under autocast and checkpointing, and on GPT-2.

tests/life/test_peft_agreement.py holds the variants, in float32, on Llama.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import quantlora
from quantlora.operations.reference import float64, relative
from quantlora.testing.models import tiny_llama

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set"),  # PEFT's
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # Transformers' own
]

IDS = torch.arange(2 * 9).reshape(2, 9) * 5 % 30
Models = tuple[nn.Module, nn.Module]


def tiny_gpt2() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 32, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0))


def both(make: Callable[[], nn.Module], **fields: Any) -> Models:
    """PEFT's model and ours, with the same base and the same random A and B."""
    given = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", **fields}
    theirs = peft.get_peft_model(make(), peft.LoraConfig(**given, init_lora_weights=False))
    ours = quantlora.wrap(make(), **given)
    state = {k.removeprefix("base_model.model."): v for k, v in theirs.state_dict().items()}
    ours.load_state_dict(state)
    return theirs, ours


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """By name, after one step on the same batch."""
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    return {
        name.removeprefix("base_model.model."): one.grad
        for name, one in model.named_parameters()
        if one.grad is not None
    }


def check(models: Models, limit: float) -> None:
    """Logits and all gradients; the limit is relative to the largest value of each."""
    theirs, ours = models
    logits = [model(input_ids=IDS).logits for model in models]
    assert relative(logits[1], float64(logits[0])) <= limit
    wanted, found = gradients(theirs), gradients(ours)
    assert wanted.keys() == found.keys()
    worst = max(relative(found[name], float64(one)) for name, one in wanted.items())
    assert worst <= limit


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_float32_agrees(make: Callable[[], nn.Module]) -> None:
    check(both(make), 1e-5)


@pytest.mark.parametrize("fields", [{"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}])
def test_gpt2s_transposed_layers_agree(fields: dict[str, bool]) -> None:
    check(both(tiny_gpt2, **fields, fan_in_fan_out=True), 1e-5)


def mean_error(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Relative to each gradient's norm, the mean over the parameters."""
    errors = [(found[k].double() - one.double()).norm() / one.norm() for k, one in exact.items()]
    return float(torch.stack(errors).mean())


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bfloat16 model"])
def test_half_precision_is_as_near_to_float32_as_pefts(
    autocast: bool, make: Callable[[], nn.Module], products: Callable[[str], None]
) -> None:
    """Both round at many places; neither may round more than the other.

    PEFT takes an adapter's products in float32 unless autocast is on.
    """
    products("float32")
    exact = gradients(both(make)[1])
    models = both(make if autocast else lambda: make().bfloat16())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        theirs, ours = (mean_error(gradients(model), exact) for model in models)
    assert ours <= 1.3 * theirs
    assert ours <= 4e-2


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_products_in_the_inputs_dtype_round_as_pefts_under_autocast(
    make: Callable[[], nn.Module],
) -> None:
    exact = gradients(both(make)[1])
    theirs, ours = both(lambda: make().bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        allowed = mean_error(gradients(theirs), exact)
    assert mean_error(gradients(ours), exact) <= 1.3 * allowed


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_agrees(reentrant: bool) -> None:
    models = both(tiny_llama)
    for model in models:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
    check(models, 1e-5)
