"""`memory_estimate`: what training will take, before the first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from quantlora.errors import ConfigError
from quantlora.inspection.live_bytes import LiveBytes
from quantlora.inspection.memory import MemoryUse, memory_of, trained_bytes

#: Tokens of the three small steps that the activations are predicted from.
_LENGTHS = (32, 64, 96)


def memory_estimate(
    model: nn.Module, *, batch_size: int, length: int, optimizer_states: int = 2
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
        activations=_activations(model, batch_size, length),
    )


def _activations(model: nn.Module, batch_size: int, length: int) -> int:
    if batch_size * length <= sum(_LENGTHS):
        return _peak(model, batch_size, length)
    fixed, linear, quadratic = parabola(_LENGTHS, [_peak(model, 1, length) for length in _LENGTHS])
    return round(fixed + batch_size * (linear * length + quadratic * length**2))


def parabola(x: tuple[int, int, int], y: list[int]) -> tuple[float, float, float]:
    """(a, b, c) of a + b·x + c·x² through three points at equal distances; c is not negative."""
    step = x[1] - x[0]
    c = max(0.0, (y[2] - 2 * y[1] + y[0]) / (2 * step**2))
    b = (y[2] - y[0]) / (x[2] - x[0]) - c * (x[2] + x[0])
    return y[2] - b * x[2] - c * x[2] ** 2, b, c


def _peak(model: nn.Module, batch_size: int, length: int) -> int:
    """Most bytes alive in a forward and backward, without the gradients of what is trained."""
    device = next(model.parameters()).device
    tokens = torch.zeros(batch_size, length, dtype=torch.long, device=device)
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
    with _untouched(model) as trained, LiveBytes() as live:
        model(**batch, use_cache=False).loss.backward()
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
