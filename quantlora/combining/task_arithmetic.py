"""Ways to combine several tensors of one shape into one, each with a weight of its own.

linear           Σ w · T                                  Ilharco et al., arXiv:2212.04089
magnitude_prune  linear, over the largest elements only
dare_linear      linear, over random elements, rescaled   Yu et al., arXiv:2311.03099
ties             largest elements; where signs differ,    Yadav et al., arXiv:2306.01708
                 those of the majority are averaged
dare_ties        as ties, over random elements, rescaled
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: Takes tensors, weights, density and the majority's method; gives their combination.
Combine = Callable[[Sequence[Tensor], Sequence[float], float, str], Tensor]

#: How ties elects a sign: by the sum of the values, or by the count of their signs.
MAJORITIES = ("total", "frequency")


def linear(
    tensors: Sequence[Tensor], weights: Sequence[float], density: float = 1.0, majority: str = ""
) -> Tensor:
    return sum(
        (weight * tensor for weight, tensor in zip(weights, tensors, strict=True)),
        torch.zeros_like(tensors[0]),
    )


def _magnitude_prune(
    tensors: Sequence[Tensor], weights: Sequence[float], density: float, majority: str
) -> Tensor:
    return linear([_largest(tensor, density) for tensor in tensors], weights)


def _dare_linear(
    tensors: Sequence[Tensor], weights: Sequence[float], density: float, majority: str
) -> Tensor:
    return linear([_dropped(tensor, density) for tensor in tensors], weights)


def _ties(
    tensors: Sequence[Tensor], weights: Sequence[float], density: float, majority: str
) -> Tensor:
    return _elect([_largest(tensor, density) for tensor in tensors], weights, majority)


def _dare_ties(
    tensors: Sequence[Tensor], weights: Sequence[float], density: float, majority: str
) -> Tensor:
    return _elect([_dropped(tensor, density) for tensor in tensors], weights, majority)


#: By the names PEFT has for them; all need a density but the first.
ARITHMETIC: dict[str, Combine] = {
    "linear": linear,
    "magnitude_prune": _magnitude_prune,
    "dare_linear": _dare_linear,
    "ties": _ties,
    "dare_ties": _dare_ties,
}


def _largest(tensor: Tensor, density: float) -> Tensor:
    """The share ``density`` of largest magnitude; the others become zero."""
    flat = tensor.reshape(-1)
    kept = flat.abs().topk(int(density * flat.numel())).indices
    pruned = torch.zeros_like(flat)
    pruned[kept] = flat[kept]
    return pruned.reshape(tensor.shape)


def _dropped(tensor: Tensor, density: float) -> Tensor:
    """A random share ``density``, scaled up so that the expected value stays."""
    return tensor * torch.bernoulli(torch.full_like(tensor, density)) / density


def _elect(tensors: Sequence[Tensor], weights: Sequence[float], majority: str) -> Tensor:
    """The weighted mean, element by element, of those whose sign is the majority's."""
    stacked = torch.stack(list(tensors))
    votes = stacked if majority == "total" else stacked.sign()
    elected = stacked.sign() == torch.where(votes.sum(0) >= 0, 1.0, -1.0)
    weighted = stacked * stacked.new_tensor(list(weights)).view(-1, *[1] * tensors[0].dim())
    return (weighted * elected).sum(0) / elected.sum(0).clamp(min=1)
