"""What trainers that compare answers are measured by, beside the perplexity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from quantlora import causal_lm_loss
from quantlora_finetune.data.comparisons import Compared, Pair, Prompted
from quantlora_finetune.data.dataset import Collate, to_device
from quantlora_finetune.data.examples import Example, TrainingTokenizer
from quantlora_finetune.reporting.evaluation import evaluating
from quantlora_finetune.training.reward import Reward


@torch.no_grad()
def preferred_share(
    model: PreTrainedModel, rows: Sequence[Compared], collate: Collate
) -> float | None:
    """Of the pairs, those whose better answer is the likelier one, token by token; None: no pair.

    Where both have the same likelihood, it is half of one.
    """
    pairs = [row for row in rows if isinstance(row, Pair)]
    if not pairs:
        return None
    with evaluating(model):
        found = [
            tuple(_loss(model, example, collate) for example in (pair.chosen, pair.rejected))
            for pair in pairs
        ]
    return sum((better < worse) + 0.5 * (better == worse) for better, worse in found) / len(found)


def _loss(model: PreTrainedModel, example: Example, collate: Collate) -> float:
    batch = to_device(collate([example]), model.device)
    return float(causal_lm_loss(model, {**batch, "use_cache": False}))


@torch.no_grad()
def mean_reward(
    model: PreTrainedModel,
    rows: Sequence[Compared],
    tokenizer: TrainingTokenizer,
    reward: Reward,
    longest: int,
) -> float | None:
    """Of the likeliest answers to the prompts, of at most ``longest`` tokens; None: no prompt."""
    prompted = [row for row in rows if isinstance(row, Prompted)]
    if not prompted:
        return None
    with evaluating(model):
        answers = [_answer(model, row, tokenizer, longest) for row in prompted]
    columns = {
        name: [row.columns.get(name) for row in prompted]
        for name in prompted[0].columns
        if name not in ("prompt", "completion")
    }
    prompts = [row.prompt for row in prompted]
    found = reward(completions=answers, prompts=prompts, **columns)
    return sum(found) / len(found)


def _answer(
    model: PreTrainedModel, row: Prompted, tokenizer: TrainingTokenizer, longest: int
) -> Any:
    """As TRL gives it to a reward: a text, or the assistant's message."""
    ids = torch.tensor([row.input_ids], device=model.device)
    generate: Any = model.generate
    whole = generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=longest,
        do_sample=False,
        pad_token_id=(tokenizer.eos or tokenizer.bos or [0])[0],
    )
    text = tokenizer.tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
    return text if isinstance(row.prompt, str) else [{"role": "assistant", "content": text}]
