"""Whether the forward of a linear layer's subclass is the plain product, found by trying it.

A trial can only show what it tries. So it tries what subclasses do: clamp (large inputs), drop NaN,
drop out (training mode, and whether random numbers were drawn), take further arguments, return more
than a tensor, mix samples. Hooks do not run.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Sizes of the inputs that are tried; float16 holds no more than 65504.
_SIZES = (1.0, 1e3, 1e6)
_SIZES_OF_HALF = (1.0, 64.0)


@torch.no_grad()
def computes(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether ``layer`` gives ``x · Wᵀ + bias`` and nothing else, for ``weight`` ``(out, in)``."""
    kind = type(layer)
    takes = inspect.signature(kind.forward).parameters
    if kind.__call__ is not nn.Module.__call__ or len(takes) != 2:  # self and the input
        return False
    with _as_it_was(layer, weight.device):
        try:
            return all(
                _agrees(kind, layer, x, F.linear(x, weight, bias))
                for training in (True, False)
                for x in _inputs(layer.train(training), weight)
            )
        except Exception:  # whatever it is, it is not a linear layer
            return False


def _inputs(layer: nn.Module, weight: Tensor) -> Iterator[Tensor]:
    rows = torch.randn(3, 5, weight.shape[1], generator=torch.Generator().manual_seed(0))
    rows = rows.to(weight.device)
    for size in _SIZES_OF_HALF if weight.dtype == torch.float16 else _SIZES:
        yield (size * rows).to(weight.dtype)
    yield torch.full_like(rows[0], float("nan"), dtype=weight.dtype)


def _agrees(kind: type[nn.Module], layer: nn.Module, x: Tensor, wanted: Tensor) -> bool:
    before = _random_states(x.device)
    y = kind.forward(layer, x)
    after = _random_states(x.device)
    drew = not all(torch.equal(state, other) for state, other in zip(before, after, strict=True))
    return not drew and isinstance(y, Tensor) and _close(y, wanted)


def _close(y: Tensor, wanted: Tensor) -> bool:
    """Equal but for the order of summation."""
    if y.shape != wanted.shape or y.dtype != wanted.dtype:
        return False
    error, scale = (y - wanted).nan_to_num().abs().max(), wanted.nan_to_num().abs().max()
    same = torch.equal(y.isnan(), wanted.isnan()) and torch.equal(y.isinf(), wanted.isinf())
    return same and bool(error <= 8 * torch.finfo(y.dtype).eps * scale)


@contextmanager
def _as_it_was(layer: nn.Module, device: torch.device) -> Iterator[None]:
    """Puts modes and random numbers back after the block."""
    modes = [(module, module.training) for module in layer.modules()]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states
