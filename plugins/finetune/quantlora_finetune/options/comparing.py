"""The options of trainers that compare answers: dpo, kto, orpo and grpo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from quantlora_finetune.options.choices import option

_COMPARING = "Preferences and rewards (--trainer dpo, kto, orpo, grpo)"


@dataclass(frozen=True)
class ComparingOptions:
    """How far the model may move, and what rewards it."""

    beta: Annotated[
        float | None,
        option(
            _COMPARING,
            "How much it is held to the model as it was; for orpo, the weight of the comparison. "
            "Default: TRL's.",
            min=0.0,
        ),
    ] = None
    reward: Annotated[
        str | None,
        option(
            _COMPARING,
            "grpo: a function that rewards answers, `module:function` or `file.py:function`. It "
            "gets lists `prompts`, `completions` and one for each column, and returns numbers.",
        ),
    ] = None
    generations: Annotated[
        int, option(_COMPARING, "grpo: answers to a prompt, compared with one another.", min=2)
    ] = 4
    completion_length: Annotated[
        int, option(_COMPARING, "grpo: tokens of an answer, at most.", min=1)
    ] = 64
