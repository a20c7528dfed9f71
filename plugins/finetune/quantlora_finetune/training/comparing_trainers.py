"""``--trainer dpo``, ``kto``, ``orpo`` and ``grpo``: TRL's, around the wrapped model.

They get token ids, written and cut as for any other training. The reference is the model as it is
when the trainer is made: with a new adapter, the base. Its weights are the model's own; see
`quantlora.reference_model`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, TrainerCallback

from quantlora_finetune.data.comparisons import Compared, Judged, Pair, Prompted
from quantlora_finetune.data.examples import TrainingTokenizer
from quantlora_finetune.options.choices import TrainerName
from quantlora_finetune.options.finetune_options import FinetuneOptions
from quantlora_finetune.training.adjusted_trainer import Adjusted
from quantlora_finetune.training.measured_trainer import Measured
from quantlora_finetune.training.reward import reward_function

#: Where else TRL has a trainer that is not at its top.
_EXPERIMENTAL = {TrainerName.KTO: "trl.experimental.kto", TrainerName.ORPO: "trl.experimental.orpo"}


def make_comparing_trainer(
    options: FinetuneOptions,
    model: PreTrainedModel,
    settings: dict[str, Any],
    rows: Sequence[Compared],
    tokenizer: TrainingTokenizer,
    callbacks: list[TrainerCallback],
) -> Measured:
    """A trainer that is ready to train; ``settings`` are those of `TrainingArguments`."""
    from datasets import Dataset

    trainer, config = _classes(options.trainer)
    fields = {**settings, **_settings(options), "gradient_checkpointing": False, "bf16": False}
    more: dict[str, Any] = {}
    if options.trainer is TrainerName.GRPO:
        more["reward_funcs"] = reward_function(options.reward or "")
    if tokenizer.tokenizer.pad_token is None:
        tokenizer.tokenizer.pad_token = tokenizer.tokenizer.eos_token
    made: Measured = _measured(trainer)(
        model=model,
        args=config(**fields),
        train_dataset=Dataset.from_list([_columns(row) for row in rows]),
        processing_class=tokenizer.tokenizer,
        callbacks=callbacks,
        **more,
    )
    return made


def _classes(name: TrainerName) -> tuple[Any, Any]:
    """The trainer and its config."""
    trl, kind = importlib.import_module("trl"), name.value.upper()
    if not hasattr(trl, f"{kind}Trainer"):
        trl = importlib.import_module(_EXPERIMENTAL[name])
    return getattr(trl, f"{kind}Trainer"), getattr(trl, f"{kind}Config")


def _measured(trainer: Any) -> Any:
    class ComparingTrainer(Measured, Adjusted, trainer):  # type: ignore[misc]
        """TRL's, given rows that are token ids already."""

        def _prepare_dataset(self, dataset: Any, _: Any, args: Any, *more: Any) -> Any:
            if "label" not in dataset.column_names:
                return dataset
            size = args.per_device_train_batch_size  # TRL takes them batch by batch, in order
            return dataset.map(_with_others_answers, batched=True, batch_size=size)

        def tokenize_row(self, feature: Any, model: Any = None) -> dict[str, Any]:
            return _labelled(feature)

    return ComparingTrainer


def _with_others_answers(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """For KTO's estimate of the divergence: each prompt with the answer to another."""
    answers = rows["completion_ids"]
    return {**rows, "KL_completion_ids": [answers[-1], *answers[:-1]]}


def _settings(options: FinetuneOptions) -> dict[str, Any]:
    settings: dict[str, Any] = {} if options.beta is None else {"beta": options.beta}
    if options.trainer is TrainerName.GRPO:
        return settings | {
            "num_generations": options.generations,
            "max_completion_length": options.completion_length,
        }
    return settings | {"max_length": options.length}


def _columns(row: Compared) -> dict[str, Any]:
    match row:
        case Pair(chosen, rejected):
            start = row.prompt
            return {
                # ORPO's trainer wants texts too, and asks `tokenize_row` for what is in them.
                **{"prompt": "", "chosen": "", "rejected": ""},
                "prompt_ids": chosen.input_ids[:start],
                "chosen_ids": chosen.input_ids[start:],
                "rejected_ids": rejected.input_ids[start:],
            }
        case Judged(example, is_good):
            return {
                "prompt_ids": example.input_ids[: example.given],
                "completion_ids": example.input_ids[example.given :],
                "label": is_good,
            }
        case Prompted(prompt, columns, _):
            return {**columns, "prompt": prompt}


def _labelled(row: dict[str, Any]) -> dict[str, Any]:
    """A pair as ORPO's trainer has it."""
    prompt = row["prompt_ids"]
    found: dict[str, Any] = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for name in ("chosen", "rejected"):
        answer = row[f"{name}_ids"]
        found[f"{name}_input_ids"] = [*prompt, *answer]
        found[f"{name}_attention_mask"] = [1] * len(found[f"{name}_input_ids"])
        found[f"{name}_labels"] = [-100] * len(prompt) + answer
    return found
