"""What a trainer does otherwise than Transformers': LoRA+, and a first step that counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from quantlora_finetune.training.schedules import starts_above_zero

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class Adjusted(_Base):
    """Mixed into a trainer; ``lr_ratio``, where it is set, is LoRA+'s."""

    lr_ratio: float | None = None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if is_new and self.lr_ratio is not None and self.model is not None:
            give_own_rate(optimizer, self.model, self.lr_ratio)
        return optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        is_new = self.lr_scheduler is None
        scheduler: Any = super().create_scheduler(*args, **kwargs)
        if is_new and isinstance(scheduler, LambdaLR):
            steps = self.args.get_warmup_steps(self.state.max_steps or self.args.max_steps)
            self.lr_scheduler = scheduler = starts_above_zero(scheduler, steps)
        return scheduler


def give_own_rate(optimizer: torch.optim.Optimizer, model: nn.Module, ratio: float) -> None:
    """Let B have ``ratio`` times the learning rate of all else (LoRA+, arXiv:2402.12354)."""
    is_B = {id(p) for name, p in model.named_parameters() if _is_up_projection(name)}
    for group in list(optimizer.param_groups):
        ups = [p for p in group["params"] if id(p) in is_B]
        group["params"] = [p for p in group["params"] if id(p) not in is_B]
        if ups:
            optimizer.add_param_group({**group, "params": ups, "lr": group["lr"] * ratio})


def _is_up_projection(name: str) -> bool:
    return "lora_B" in name or "lora_embedding_B" in name
