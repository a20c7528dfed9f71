"""LoftQ on a model that is wrapped and packed already, layer by layer, each kept or taken back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from quantlora import (
    InitContext,
    LoraLayer,
    known_adapter,
    lora_layers,
    open_reference,
    reference_for,
)
from quantlora_loftq.initializers import fit_layer, reference_weight, set_factors
from quantlora_loftq.options import LoftQConfig

#: Looks at the model after one layer was changed; False takes that layer back.
Callback = Callable[[nn.Module, str], bool]


@torch.no_grad()
def replace_lora_weights_loftq(
    model: nn.Module,
    reference: Callable[[str], Tensor] | str | os.PathLike[str],
    adapter_name: str = "default",
    callback: Callback | None = None,
    method: str = "krylov",
) -> list[str]:
    """Set A and B of each packed layer to the best rank-r part of ``W - dequantize(Q)``.

    Named and used as PEFT's, for every format and with the scaling right.

    Args:
        model: a wrapped model.
        reference: the float weights: a folder of safetensors, a hub id, or a function of the path.
        callback: called as ``callback(model, path)`` after each layer; False restores its A and B.
            Call it with a measure of the whole model to keep only what helps.

    Returns:
        Paths of the layers that were kept. If anything fails, all A and B are as they were.

    Raises:
        AdapterError: an adapter is merged: the bases are not those that A and B are added to.
    """
    weights, config = open_reference(reference), known_adapter(model, adapter_name)
    for _, layer in lora_layers(model):
        layer.check_unmerged("A and B are fitted to it")
    kept: list[str] = []
    with _taken_back_on_failure(model, adapter_name) as before:
        for path, layer in lora_layers(model):
            if adapter_name not in layer.adapters:
                continue
            given = partial(reference_for, weights, path, layer)
            before[path] = _values(layer, adapter_name)
            _replace(layer, InitContext(path, adapter_name, config, given), method)
            if callback is None or callback(model, path):
                kept.append(path)
            else:
                _restore(layer, adapter_name, before.pop(path))
    return kept


@contextmanager
def _taken_back_on_failure(
    model: nn.Module, adapter: str
) -> Iterator[dict[str, dict[str, Tensor]]]:
    """Values by path from before; put back where the block fails or is interrupted."""
    before: dict[str, dict[str, Tensor]] = {}
    try:
        yield before
    except BaseException:
        for path, layer in lora_layers(model):
            if path in before:
                _restore(layer, adapter, before[path])
        raise


def _values(layer: LoraLayer, adapter: str) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in layer.adapter_tensors(adapter).items()}


def _replace(layer: LoraLayer, context: InitContext, method: str) -> None:
    weight = reference_weight(layer, context)
    solution = fit_layer(layer, context, weight, LoftQConfig(method=method))
    set_factors(layer, context, *solution.factors(layer.scaling[context.adapter]))
    layer.finish_adapter(context.adapter, context.config)


def _restore(layer: LoraLayer, adapter: str, before: dict[str, Tensor]) -> None:
    for name, parameter in layer.adapter_tensors(adapter).items():
        parameter.data.copy_(before[name])
