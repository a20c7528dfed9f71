"""What a model is asked and how it answers: prompts as token ids, replies as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quantlora.errors import FinetuneError
from quantlora_finetune.data.messages import Message
from quantlora_finetune.trained.trained_model import TrainedModel

#: Logits divided by less may leave the range of float32.
LEAST_TEMPERATURE = 1e-5


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Args:
        temperature: 0 takes the most likely one.
        top_p: of the tokens, the likeliest that have this much of the probability together.

    Raises:
        FinetuneError: logits divided by the temperature would not be finite.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not LEAST_TEMPERATURE <= self.temperature < math.inf:
            raise FinetuneError(
                f"--temperature {self.temperature:g}: use 0, which takes the most likely token "
                f"each time, or a finite number of at least {LEAST_TEMPERATURE:g}."
            )

    def as_arguments(self) -> dict[str, Any]:
        """For ``model.generate``; what the model's own file asks for otherwise is overruled."""
        chosen: dict[str, Any] = {"max_new_tokens": self.max_tokens, "top_k": None}
        if self.temperature == 0:
            return chosen | {"do_sample": False, "temperature": None, "top_p": None}
        return chosen | {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}


def prompt_ids(trained: TrainedModel, prompt: str | Sequence[Message]) -> list[int]:
    """The ids of a text, or of a conversation as the model's template writes it, BOS first."""
    if isinstance(prompt, str):
        return trained.tokenizer.starting(prompt) or trained.tokenizer.bos
    if not trained.has_template:
        raise FinetuneError(
            f"{trained.base.name}: its tokenizer has no chat template, so it takes texts, not "
            f"messages."
        )
    write: Any = trained.tokenizer.tokenizer.apply_chat_template
    try:
        text: str = write(list(prompt), add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program, and says what it does not take
        roles = ", ".join(str(message.get("role")) for message in prompt)
        raise FinetuneError(
            f"the chat template of {trained.base.name} does not take a conversation of the roles "
            f"{roles}: {type(error).__name__}: {error}"
        ) from error
    return trained.tokenizer.starting(text)


def check_room(trained: TrainedModel, ids: Sequence[int], max_tokens: int) -> None:
    """Raise `FinetuneError` where prompt and reply are longer than the model reads."""
    longest = trained.base.longest
    if longest is not None and len(ids) + max_tokens > longest:
        raise FinetuneError(
            f"the prompt has {len(ids)} tokens and --max-tokens asks for {max_tokens} more; "
            f"{trained.base.name} reads at most {longest}. Shorten one of them."
        )


def room_for(trained: TrainedModel, ids: Sequence[int], max_tokens: int) -> int:
    """Tokens that a reply to ``ids`` may have: ``max_tokens``, or what the model's positions leave.

    Raises:
        FinetuneError: they leave none.
    """
    longest = trained.base.longest
    room = max_tokens if longest is None else min(max_tokens, longest - len(ids))
    if room < 1:
        raise FinetuneError(
            f"the conversation has {len(ids)} tokens, and {trained.base.name} reads at most "
            f"{longest}: type less, or /reset, which begins a new one."
        )
    return room


@torch.no_grad()
def replies(
    trained: TrainedModel, prompts: Sequence[list[int]], sampling: Sampling, **more: Any
) -> list[str]:
    """The reply to each prompt, generated as one batch that is padded on the left."""
    inputs = _left_padded(prompts, trained.base.padding)
    device = trained.model.device
    generate: Any = trained.model.generate
    whole = generate(
        **{name: tensor.to(device) for name, tensor in inputs.items()},
        **sampling.as_arguments(),
        pad_token_id=trained.base.padding,
        eos_token_id=sorted(end_tokens(trained)) or None,
        **more,
    )
    start = inputs["input_ids"].shape[1]
    decode: Any = trained.tokenizer.tokenizer.decode
    return [decode(ids, skip_special_tokens=True) for ids in _until_end(whole[:, start:], trained)]


def _left_padded(prompts: Sequence[list[int]], padding: int) -> dict[str, Tensor]:
    longest = max(map(len, prompts))
    ids = [[padding] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def _until_end(rows: Tensor, trained: TrainedModel) -> list[list[int]]:
    """Each row up to its first end; what follows there is padding, which may be any token."""
    ends = end_tokens(trained)
    kept = []
    for row in rows.tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        kept.append(row[:stop])
    return kept


def end_tokens(trained: TrainedModel) -> set[int]:
    """The ids that end a reply: those of the model, and the tokenizer's, which training teaches."""
    config: Any = trained.model.generation_config
    given = config.eos_token_id
    ends = given if isinstance(given, list) else [] if given is None else [given]
    return {*ends, *trained.tokenizer.eos}
