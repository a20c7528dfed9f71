"""One pass over some data: how large each input channel of each layer is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def input_mean_squares(
    model: nn.Module,
    batches: Iterable[Any],
    keep: Callable[[str, nn.Module], bool] = lambda path, module: isinstance(module, nn.Linear),
) -> dict[str, Tensor]:
    """Mean of ``x²`` over all tokens, for each input channel ``(in_features,)``, by path.

    Args:
        model: the float model; it is run in evaluation mode and left as it was.
        batches: what the model takes: tensors, or mappings of keyword arguments.
        keep: which modules to watch.
    """
    watched = {path: module for path, module in model.named_modules() if keep(path, module)}
    sums: dict[str, Tensor] = {}
    samples: dict[str, int] = {}
    training = model.training
    with ExitStack() as stack:
        for path, module in watched.items():
            handle = module.register_forward_pre_hook(_collect(path, sums, samples))
            stack.callback(handle.remove)
        stack.callback(model.train, training)
        model.eval()
        for batch in batches:
            _run(model, batch)
    return {path: (total / samples[path]).float() for path, total in sums.items()}


def _collect(path: str, sums: dict[str, Tensor], samples: dict[str, int]) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].reshape(-1, inputs[0].shape[-1])
        squares = rows.double().square().sum(0)
        sums[path] = sums[path] + squares if path in sums else squares
        samples[path] = samples.get(path, 0) + rows.shape[0]

    return hook


def _run(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Tensor):
        model(batch)
    else:
        model(**batch)
