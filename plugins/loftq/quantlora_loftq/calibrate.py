"""One pass over some data: how large each input channel of each layer is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from quantlora import expert_inputs, has_fused_experts


@torch.no_grad()
def input_mean_squares(
    model: nn.Module,
    batches: Iterable[Any],
    keep: Callable[[str, nn.Module], bool] = lambda path, module: (
        isinstance(module, nn.Linear) or has_fused_experts(module)
    ),
) -> dict[str, Tensor]:
    """Mean of ``x²`` over all tokens, for each input channel ``(in_features,)``, by path.

    Fused experts have one for each matrix of each expert, ``...experts.down_proj.3``, of the tokens
    that went there; one without any is given the mean of the others.

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
            hook = _of_experts if has_fused_experts(module) else _of_layer
            handle = module.register_forward_pre_hook(hook(path, sums, samples), with_kwargs=True)
            stack.callback(handle.remove)
        stack.callback(model.train, training)
        model.eval()
        for batch in batches:
            _run(model, batch)
    found = {path: (total / samples[path]).float() for path, total in sums.items()}
    for path, module in watched.items():
        if has_fused_experts(module):
            _fill(path, module, found)
    return found


def _of_layer(path: str, sums: dict[str, Tensor], samples: dict[str, int]) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        _add(path, next(iter((*inputs, *named.values()))), sums, samples)

    return hook


def _of_experts(path: str, sums: dict[str, Tensor], samples: dict[str, int]) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        for name, rows in expert_inputs(module, *inputs, *named.values()):
            _add(f"{path}.{name}", rows, sums, samples)

    return hook


def _add(path: str, x: Tensor, sums: dict[str, Tensor], samples: dict[str, int]) -> None:
    rows = x.reshape(-1, x.shape[-1])
    squares = rows.double().square().sum(0)
    sums[path] = sums[path] + squares if path in sums else squares
    samples[path] = samples.get(path, 0) + rows.shape[0]


def _fill(path: str, module: nn.Module, found: dict[str, Tensor]) -> None:
    """The mean of the other experts for those that no token went to."""
    experts = max(len(tensor) for tensor in module.parameters() if tensor.dim() > 2)
    stacks: dict[str, list[Tensor]] = {}
    for key, value in found.items():
        stack, _, number = key.rpartition(".")
        if stack.rpartition(".")[0] == path and number.isdigit():
            stacks.setdefault(stack, []).append(value)
    for stack, values in stacks.items():
        for expert in range(experts):
            found.setdefault(f"{stack}.{expert}", torch.stack(values).mean(0))


def _run(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Tensor):
        model(batch)
    else:
        model(**batch)
