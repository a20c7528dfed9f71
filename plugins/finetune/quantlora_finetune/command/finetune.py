"""``quantlora finetune``: the options are the fields of `FinetuneOptions`."""

from __future__ import annotations

from collections.abc import Sequence

from quantlora.commands import command_of
from quantlora_finetune.options.aliases import translated
from quantlora_finetune.options.choices import flags
from quantlora_finetune.options.config_file import with_config
from quantlora_finetune.options.finetune_options import FinetuneOptions


def finetune(options: FinetuneOptions, given: frozenset[str]) -> None:
    """Fine-tune a language model with LoRA over quantized weights.

    Without any option it is a demonstration that needs no account and no hub: Gemma 3 with 270
    million parameters is quantized to 4 bits and learns the Python language reference, in a few
    minutes on two CPU cores.

    Options of other programs are understood (**--learning-rate**, **--lora-alpha**,
    **--load-in-4bit**, ...), with hyphens or underscores. **--config FILE** reads options from YAML
    or JSON; the run.json of a run repeats it.

    The output folder gets the adapter (as PEFT has it), a report with its pictures (report.html,
    report.json, loss.png) and a model card.
    Interrupted, it loses at most the steps since the last checkpoint; **--resume** goes on.

    **Examples**

    - `quantlora finetune`
    - `quantlora finetune --model Qwen/Qwen3-0.6B --data chats.jsonl --steps 200 -o my-adapter`
    - `quantlora finetune --model ./my-model --data notes.txt --bits 8 --rank 32`
    - `quantlora finetune --model ./my-model --data my-org/my-data:en --variant dora`
    - `quantlora finetune --config run.yaml --output another-adapter`
    - `quantlora finetune --resume --output my-adapter`
    """
    from quantlora_finetune.terminal import run_for_terminal

    run_for_terminal(options, given)


def _meant(arguments: Sequence[str]) -> list[str]:
    return translated(with_config(arguments), flags(FinetuneOptions))


command = command_of(FinetuneOptions, finetune, _meant)
