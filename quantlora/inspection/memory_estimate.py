"""`memory_estimate`: what training will take, before the first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quantlora.errors import ConfigError
from quantlora.inspection.live_bytes import LiveBytes
from quantlora.inspection.memory import MemoryUse, memory_of, trained_bytes
from quantlora.training.causal_lm_loss import causal_lm_loss, logits_bytes

Loss = Callable[[nn.Module, Mapping[str, Any]], Tensor]

#: Tokens of the three small steps that the activations are predicted from.
_LENGTHS = (32, 64, 96)


def memory_estimate(
    model: nn.Module,
    *,
    batch_size: int,
    length: int,
    optimizer_states: int = 2,
    chunked_loss: bool = False,
) -> MemoryUse:
    """Memory that training ``model`` takes, by component, in bytes.

    Weights, adapters, gradients and optimizer are counted. Activations are measured in three
    forwards and backwards over a single short sequence, and followed to the full batch: in the
    number of sequences they are linear, in the length quadratic at most. Neither the model nor
    torch's random numbers are changed.

    Args:
        model: a Transformers language model, wrapped, with gradient checkpointing turned on if it
            is to be.
        batch_size: sequences in one forward.
        length: tokens in each.
        optimizer_states: tensors that the optimizer keeps for each trained parameter, in its
            dtype: 2 for Adam and AdamW, 1 for SGD with momentum.
        chunked_loss: the loss is that of `causal_lm_loss`.

    Raises:
        ConfigError: a number is below 1, or nothing in the model is trained.
    """
    for name, value in (("batch_size", batch_size), ("length", length)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}.")
    trained = trained_bytes(model)
    if not trained:
        raise ConfigError("nothing in the model is trained: call quantlora.wrap(model) first.")
    return dataclasses.replace(
        memory_of(model),
        gradients=trained,
        optimizer=optimizer_states * trained,
        activations=_activations(model, batch_size, length, chunked_loss),
    )


def _activations(model: nn.Module, batch_size: int, length: int, chunked: bool) -> int:
    if batch_size * length <= sum(_LENGTHS):
        return _peak(model, batch_size, length, causal_lm_loss if chunked else _own_loss)
    loss, more, few = _own_loss, 0, min(_LENGTHS) - 1
    if chunked:  # so few tokens at a time that the short sequences have as many
        loss = partial(causal_lm_loss, tokens_at_once=few)
    peaks = [_peak(model, 1, short, loss) for short in _LENGTHS]
    if chunked:  # asked after the first call, which shows whether the model is called as it is
        more = logits_bytes(model, batch_size * (length - 1)) - logits_bytes(model, few)
    fixed, linear, quadratic = parabola(_LENGTHS, peaks)
    return more + round(fixed + batch_size * (linear * length + quadratic * length**2))


def _own_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    loss: Tensor = model(**batch).loss
    return loss


def parabola(x: tuple[int, int, int], y: list[int]) -> tuple[float, float, float]:
    """(a, b, c) of a + b·x + c·x² through three points at equal distances; c is not negative."""
    step = x[1] - x[0]
    c = max(0.0, (y[2] - 2 * y[1] + y[0]) / (2 * step**2))
    b = (y[2] - y[0]) / (x[2] - x[0]) - c * (x[2] + x[0])
    return y[2] - b * x[2] - c * x[2] ** 2, b, c


def _peak(model: nn.Module, batch_size: int, length: int, loss: Loss = _own_loss) -> int:
    """Most bytes alive in a forward and backward, without the gradients of what is trained."""
    device = next(model.parameters()).device
    tokens = torch.zeros(batch_size, length, dtype=torch.long, device=device)
    batch: dict[str, Any] = {"input_ids": tokens, "labels": tokens, "use_cache": False}
    batch["attention_mask"] = torch.ones_like(tokens)
    with _untouched(model) as trained, LiveBytes() as live:
        loss(model, batch).backward()  # type: ignore[no-untyped-call]
        peak: int = live.peak(without=[p.grad for p in trained if p.grad is not None])
    return peak


@contextmanager
def _untouched(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Training mode within the block; afterwards mode, gradients and random numbers are restored.

    Gives the trained parameters.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients, was_training = [parameter.grad for parameter in trained], model.training
    for parameter in trained:
        parameter.grad = None
    model.train()
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            yield trained
    finally:
        model.train(was_training)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
