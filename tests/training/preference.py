"""TRL's trainers of preferences and rewards around a tiny Llama, as users type them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn

from quantlora.testing.models import tiny_tokenizer
from tests.training.trainers import OPTIONS

ROWS = [(f"{'abcd'[i]} is", f" the {'wxyz'[i]}.", f" no {'wxyz'[i]}.") for i in range(4)]
PAIRS = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in ROWS]


def _dpo(model: nn.Module, folder: str, options: dict[str, Any]) -> Any:
    from trl import DPOConfig, DPOTrainer

    return _made(DPOTrainer, model, DPOConfig(folder, **options), PAIRS)


def _kto(model: nn.Module, folder: str, options: dict[str, Any]) -> Any:
    from trl.experimental.kto import KTOConfig, KTOTrainer

    rows = [
        {"prompt": prompt, "completion": text, "label": label}
        for prompt, chosen, rejected in ROWS
        for text, label in ((chosen, True), (rejected, False))
    ]
    return _made(KTOTrainer, model, KTOConfig(folder, **options), rows)


def _grpo(model: nn.Module, folder: str, options: dict[str, Any], kind: str = "GRPO") -> Any:
    import trl

    few = {"num_generations": 2, "max_completion_length": 4, "beta": 0.1, **options}
    config = getattr(trl, f"{kind}Config")(folder, **few)
    prompts = [{"prompt": pair["prompt"]} for pair in PAIRS]
    return _made(getattr(trl, f"{kind}Trainer"), model, config, prompts, reward_funcs=_length)


def _rloo(model: nn.Module, folder: str, options: dict[str, Any]) -> Any:
    return _grpo(model, folder, options, "RLOO")


def _length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(one)) + i for i, one in enumerate(completions)]


def _orpo(model: nn.Module, folder: str, options: dict[str, Any]) -> Any:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    return _made(ORPOTrainer, model, ORPOConfig(folder, max_length=32, **options), PAIRS)


def _cpo(model: nn.Module, folder: str, options: dict[str, Any]) -> Any:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return _made(CPOTrainer, model, CPOConfig(folder, max_length=32, **options), PAIRS)


def _reward(model: nn.Module, folder: str, options: dict[str, Any]) -> Any:
    from trl import RewardConfig, RewardTrainer

    return _made(RewardTrainer, model, RewardConfig(folder, **options), PAIRS)


def _made(kind: Any, model: nn.Module, config: Any, rows: list[Any], **more: Any) -> Any:
    data = Dataset.from_list(rows)
    return kind(
        model=model, args=config, train_dataset=data, processing_class=tiny_tokenizer(), **more
    )


_MAKERS = {
    "dpo": _dpo,
    "kto": _kto,
    "grpo": _grpo,
    "rloo": _rloo,
    "orpo": _orpo,
    "cpo": _cpo,
    "reward": _reward,
}
#: Those with a reference model, and those without.
WITH_REFERENCE, WITHOUT = ("dpo", "kto", "grpo", "rloo"), ("orpo", "cpo")


def make(trainer: str, model: nn.Module, folder: Path, **options: Any) -> Any:
    """A trainer of the kind around ``model``, without ``ref_model``."""
    return _MAKERS[trainer](model, str(folder), {**OPTIONS, "max_steps": 3, **options})


def already_trained(model: nn.Module) -> nn.Module:
    """As after a stage of supervised training."""
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    return model


def first(log: list[dict[str, Any]], *keys: str) -> list[float]:
    """The entries of the first step; NaN where a batch had none of that kind counts as 0."""
    values = [float(log[0].get(key, 0)) for key in keys]
    return [0.0 if value != value else value for value in values]
