"""What two models give for the same inputs, and how far it is apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.exporting.sample_inputs import candidate_inputs

Inputs = Mapping[str, Tensor]


def usable_inputs(model: Any) -> tuple[Inputs, list[Tensor]] | None:
    """The first of `candidate_inputs` that ``model`` answers in numbers, and the answer."""
    for inputs in candidate_inputs(model):
        try:
            found = outputs(model, inputs)
        except Exception:  # not what this architecture takes: the next one may be
            continue
        if found and all(tensor.isfinite().any() for tensor in found):
            return inputs, found
    return None


@torch.no_grad()
def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The floating tensors of the model's answer, in float64, as evaluation gives them.

    Models that draw random numbers also then (masked images, say) draw the same each time.
    """
    training = model.training
    model.eval()
    first = next(parameter for parameter in model.parameters())
    dtype = getattr(model, "dtype", torch.float32)
    with torch.random.fork_rng(enabled=True):
        torch.manual_seed(0)
        try:
            given = {name: _as(tensor, first.device, dtype) for name, tensor in inputs.items()}
            answer = model(**given)
        finally:
            model.train(training)
    return [tensor.detach().double().cpu() for tensor in _tensors(answer)]


def _as(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype if tensor.is_floating_point() else None)


def _tensors(answer: Any) -> Iterator[Tensor]:
    """Those of outputs, tuples and lists; a cache of keys and values is left out."""
    if isinstance(answer, Tensor):
        if answer.is_floating_point() and answer.numel():
            yield answer
    elif isinstance(answer, (tuple, list)):
        for value in answer:
            yield from _tensors(value)
    elif is_dataclass(answer):
        for field in fields(answer):
            if field.name != "past_key_values":
                yield from _tensors(getattr(answer, field.name))


def relative(found: Tensor, wanted: Tensor) -> float:
    """``max |found - wanted| / max |wanted|`` over what is finite; infinities must agree."""
    if found.shape != wanted.shape:
        return float("inf")
    apart = torch.where(found == wanted, 0.0, found - wanted).abs().max()
    largest = wanted[wanted.isfinite()].abs().max() if wanted.isfinite().any() else torch.ones(())
    return float(apart / largest.clamp_min(torch.finfo(wanted.dtype).tiny)) if apart else 0.0


def furthest(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest of the relative errors of two models' outputs; infinite if they do not pair."""
    if len(found) != len(wanted):
        return float("inf")
    errors = [relative(a, b) for a, b in zip(found, wanted, strict=True)]
    return max(errors) if all(error == error for error in errors) else float("nan")


@contextmanager
def active_only(adapted: AdaptedModel, names: Iterable[str]) -> Iterator[None]:
    """Within the block ``names`` are the active adapters; nothing else changes."""
    before = [(module, module.active) for module in adapted.adapter_modules.values()]
    names = tuple(names)
    for module, _ in before:
        module.activate(names)
    try:
        yield
    finally:
        for module, active in before:
            module.active = active


@contextmanager
def never_called(adapted: AdaptedModel, paths: set[str]) -> Iterator[None]:
    """Leave in ``paths`` the LoRA layers that no forward within the block has called."""
    hooks = []
    for path, layer in adapted.lora_layers.items():
        paths.add(path)
        hooks.append(layer.register_forward_hook(lambda *_, path=path: paths.discard(path)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
