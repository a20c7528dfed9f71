"""What is measured: perplexity on held-out examples, and a continuation to read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from quantlora import causal_lm_loss
from quantlora.errors import FinetuneError
from quantlora_finetune.data.dataset import Collate, to_device
from quantlora_finetune.data.examples import Example, TrainingTokenizer

#: Tokens of the held-out example that are shown as a prompt, and those that are generated.
PROMPT, CONTINUATION = 24, 40
#: exp of more overflows.
_LARGEST = 700


@dataclass(frozen=True)
class Measurement:
    """One look at the model.

    Args:
        preferred: the share of held-out pairs whose chosen answer is the likelier one.
        reward: of the likeliest answers to held-out prompts, in the mean.
    """

    perplexity: float
    prompt: str
    continuation: str
    preferred: float | None = None
    reward: float | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def perplexity(
    model: PreTrainedModel, examples: Sequence[Example], collate: Collate, batch_size: int
) -> float:
    """exp of the mean negative log-likelihood of the tokens to predict; inf if it overflows."""
    total, count = 0.0, 0
    with evaluating(model):
        for start in range(0, len(examples), batch_size):
            part = examples[start : start + batch_size]
            tokens = sum(example.learned for example in part)
            batch = to_device(collate(part), model.device)
            total += float(causal_lm_loss(model, {**batch, "use_cache": False})) * tokens
            count += tokens
    mean = total / count
    return math.inf if mean > _LARGEST else math.exp(mean)


@torch.no_grad()
def continuation(
    model: PreTrainedModel, tokenizer: TrainingTokenizer, prompt: str, longest: int | None = None
) -> str:
    """The most likely next tokens, one after the other.

    Args:
        longest: positions that the model has; of a prompt too long for them the end is read.
    """
    start, count = tokenizer.starting(prompt), CONTINUATION
    if longest is not None:
        count = min(CONTINUATION, longest // 2)
        start = tokenizer.ending(start, longest - count)
    ids = torch.tensor([start], device=model.device)
    generate: Any = model.generate
    with evaluating(model):
        whole = generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=(tokenizer.eos or tokenizer.bos or [0])[0],
        )
    text: str = tokenizer.tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
    return text


def check_prompt(prompt: str | None, tokenizer: TrainingTokenizer, longest: int | None) -> None:
    """Raise `FinetuneError` where a prompt that was asked for cannot be continued whole."""
    count = len(tokenizer.starting(prompt or ""))
    if longest is not None and prompt is not None and count + CONTINUATION > longest:
        raise FinetuneError(
            f"--prompt has {count} tokens, which leave no room to continue: the model reads at "
            f"most {longest} at once, and {CONTINUATION} are to follow."
        )


def prompt_of(example: Example, tokenizer: TrainingTokenizer) -> str:
    """The prompt of a held-out example; of a text, the start of its first whole paragraph."""
    decode = tokenizer.tokenizer.decode
    if example.given > 1:
        given = example.input_ids[: example.given]
        bos = len(tokenizer.bos) if given[: len(tokenizer.bos)] == tokenizer.bos else 0
        prompt: str = decode(given[bos:])  # with the marks of its turns, as it was learned
        return prompt
    text: str = decode(example.input_ids, skip_special_tokens=True)
    end = text.find("\n\n", 0, len(text) // 2)
    whole = text[end:].lstrip("\n") if end >= 0 else text
    start: str = decode(tokenizer.encode(whole)[:PROMPT])
    return start


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout within the block."""
    was_training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(was_training)
