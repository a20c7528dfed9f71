"""Transformers' Trainer (and TRL's) that also logs the speed and measures the memory of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Trainer

from quantlora import (
    LiveBytes,
    MemoryUse,
    causal_lm_loss,
    gradient_bytes,
    memory_of,
    optimizer_bytes,
)
from quantlora_finetune.data.dataset import tokens_in
from quantlora_finetune.training.adjusted_trainer import Adjusted
from quantlora_finetune.training.speed import Speed

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class Measured(_Base):
    """Mixed into a trainer: each step logs ``tokens_per_second``, the first is measured.

    Set ``speed``, one of its callbacks, before it trains.
    """

    speed: Speed
    #: Bytes of the first forward and backward, as in `MemoryUse`; None before them.
    activations: int | None = None
    gradients: int = 0

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        is_batch = isinstance(inputs, Mapping)  # GRPO's is made in the step, by generation
        seen = self.state.num_input_tokens_seen
        if is_batch:
            self.speed.count(tokens_in(inputs))
        loss = self._measured_step(model, inputs, *args, **kwargs)
        if not is_batch:
            self.speed.count(torch.tensor(self.state.num_input_tokens_seen - seen))
        return loss

    def _measured_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self.activations is not None:
            return super().training_step(model, inputs, *args, **kwargs)
        with LiveBytes() as live:
            loss = super().training_step(model, inputs, *args, **kwargs)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        self.activations = live.peak(without=gradients)
        self.gradients = gradient_bytes(model)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs = {**logs, "tokens_per_second": round(self.speed.of_last_step, 1)}
        super().log(logs, *args, **kwargs)

    def memory(self) -> MemoryUse | None:
        """What the training took; None where it made no step."""
        if self.activations is None or self.optimizer is None or self.model is None:
            return None
        weights = memory_of(self.model)
        return MemoryUse(
            weights.base_packed,
            weights.base_float,
            weights.adapters,
            self.gradients,
            optimizer_bytes(self.optimizer),
            self.activations,
        )


class MeasuredTrainer(Measured, Adjusted, Trainer):
    """Transformers' own, with the loss by `causal_lm_loss`."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        def loss(**given: Any) -> dict[str, Any]:
            items = given.pop("num_items_in_batch", None)
            return {"loss": causal_lm_loss(model, given, items)}

        whole: Any = super().compute_loss  # which may scale it
        return whole(loss, inputs, *args, **kwargs)
