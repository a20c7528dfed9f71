"""Exact match on GSM8K: the model answers, and its last number is held against the right one."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from gsm8k import Problem, exact_match
from gsm8k_tokens import source_ids
from tqdm.auto import tqdm


@torch.no_grad()
def measure(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    options: argparse.Namespace,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Exact match over ``problems``, of which each process answers its share."""
    model = accelerator.unwrap_model(model).eval()
    began, answers = time.perf_counter(), []
    size = options.per_device_eval_batch_size
    mine = list(problems)[accelerator.process_index :: accelerator.num_processes]
    for start in tqdm(
        range(0, len(mine), size), disable=not accelerator.is_main_process, desc="measuring"
    ):
        part = mine[start : start + size]
        texts = answer(model, tokenizer, part, options, accelerator.device)
        answers += [
            {"question": problem.question, "text": text, "right": right}
            for problem, text, right in zip(part, texts, exact_match(texts, part), strict=True)
        ]
    everything = gather_object(answers)
    right = sum(one["right"] for one in everything)
    return {
        "accuracy": right / len(everything) if everything else math.nan,
        "right": right,
        "measured": len(everything),
        "seconds": round(time.perf_counter() - began, 1),
        "answers": everything,
    }


def answer(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    options: argparse.Namespace,
    device: torch.device,
) -> list[str]:
    """What the model says to each question, filled up at the start so that all go on together."""
    prompts = [source_ids(problem, tokenizer, options) for problem in problems]
    longest = max(map(len, prompts))
    rows = [[tokenizer.pad_token_id] * (longest - len(one)) + one for one in prompts]
    masks = [[0] * (longest - len(one)) + [1] * len(one) for one in prompts]
    drawn = {"temperature": options.temperature, "top_k": options.k, "top_p": options.p}
    whole = model.generate(
        input_ids=torch.tensor(rows, device=device),
        attention_mask=torch.tensor(masks, device=device),
        max_new_tokens=options.max_target_length,
        pad_token_id=tokenizer.pad_token_id,
        **({"do_sample": True, **drawn} if options.temperature > 0 else {"do_sample": False}),
    )
    texts: list[str] = tokenizer.batch_decode(whole[:, longest:], skip_special_tokens=True)
    return texts
