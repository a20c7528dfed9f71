"""What combining several adapters comes to in one layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlora.combining.task_arithmetic import ARITHMETIC, linear
from quantlora.errors import AdapterError
from quantlora.layers.layer import LoraLayer

SVD = "svd"
CAT = "cat"

#: PEFT's names.
COMBINATION_TYPES = (
    *ARITHMETIC,
    CAT,
    SVD,
    *(f"{kind}_svd" for kind in ARITHMETIC if kind != "linear"),
)

_BIAS = "lora_B.bias"

#: A and B as they are stored: the rank is A's first dimension and B's second.
Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How to combine, and the weight of each adapter.

    Args:
        svd_rank: at most this rank for the ``svd`` types.
        low_rank: the update of every part is ``s · B · A`` (not so for DoRA).
        lora_bias: some part has a bias in B, so the result has one in every layer.
    """

    weights: dict[str, float]
    kind: str
    svd_rank: int
    density: float
    majority: str
    low_rank: bool
    lora_bias: bool

    def combine(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """By the arithmetic of ``kind``; ``cat`` and ``svd`` stand for the plain sum."""
        arithmetic = ARITHMETIC.get(self.kind.removesuffix("_svd"), linear)
        return arithmetic(tensors, weights, self.density, self.majority)


def combine_layer(layer: LoraLayer, recipe: Recipe) -> dict[str, Tensor]:
    """The new adapter's tensors by name; none where the layer has none of the parts."""
    parts = {name: weight for name, weight in recipe.weights.items() if name in layer.adapters}
    if not parts:
        return {}
    if recipe.kind in ARITHMETIC:
        factors = _apart(layer, parts, recipe)
    elif recipe.kind == CAT and sum(layer.r[name] for name in parts) <= _limit(layer):
        factors = _concatenated(layer, parts)
    else:
        factors = _decomposed(layer, parts, recipe)
    bias = _bias(layer, parts, recipe)
    return dict(zip(layer.factor_names, factors, strict=True)) | bias


def _apart(layer: LoraLayer, parts: dict[str, float], recipe: Recipe) -> Factors:
    """A and B each by itself, each with the root of the weight; its sign goes to A."""
    ranks = {name: layer.r[name] for name in parts}
    if len(set(ranks.values())) > 1:
        raise AdapterError(
            f"{layer.path}: combination_type {recipe.kind!r} needs equal ranks, but they are "
            f"{ranks}: use 'cat' or 'svd'."
        )
    scaled = _scaled(layer, parts)
    roots = [math.sqrt(abs(weight)) for weight in scaled]
    signed = [math.copysign(root, weight) for root, weight in zip(roots, scaled, strict=True)]
    A, B = zip(*(_factors(layer, name) for name in parts), strict=True)
    return recipe.combine(A, signed), recipe.combine(B, roots)


def _concatenated(layer: LoraLayer, parts: dict[str, float]) -> Factors:
    A, B = zip(*(_factors(layer, name) for name in parts), strict=True)
    weighted = [weight * factor for weight, factor in zip(_scaled(layer, parts), A, strict=True)]
    return torch.cat(weighted, 0), torch.cat(B, 1)


def _decomposed(layer: LoraLayer, parts: dict[str, float], recipe: Recipe) -> Factors:
    """The best factors of the sum; a ``cat`` beyond the layer's rank loses nothing by it."""
    like_A, like_B = _factors(layer, next(iter(parts)))
    rank = _limit(layer) if recipe.kind == CAT else min(recipe.svd_rank, _limit(layer))
    if recipe.kind in (CAT, SVD) and recipe.low_rank:
        A, B = (factor.flatten(1) for factor in _concatenated(layer, parts))
        A, B = factors_of_sum(A, B, rank)
    else:
        base, quantizer = layer.plain_base
        weight = quantizer.dequantize(base)
        deltas = [layer.delta_weight(name, weight) for name in parts]
        A, B = best_factors(recipe.combine(deltas, list(parts.values())), rank)
    kernel = like_A.shape[2:]  # that of a convolution; a variant's A may have other inputs
    A = A.to(like_A).reshape(len(A), -1, *kernel)
    return A, B.to(like_B).reshape(len(like_B), -1, *like_B.shape[2:])


def _bias(layer: LoraLayer, parts: dict[str, float], recipe: Recipe) -> dict[str, Tensor]:
    """The biases of B (``lora_bias``), as vectors beside the product, with the same weights."""
    if not recipe.lora_bias:
        return {}
    none = _factors(layer, next(iter(parts)))[1].new_zeros(layer.out_features)
    tensors = [layer.adapter_tensors(name) for name in parts]
    biases = [by_name[_BIAS].detach() if _BIAS in by_name else none for by_name in tensors]
    return {_BIAS: recipe.combine(biases, _scaled(layer, parts))}


def _factors(layer: LoraLayer, name: str) -> Factors:
    tensors = layer.adapter_tensors(name)
    A, B = (tensors[key].detach() for key in layer.factor_names)
    if B.shape[1] != len(A):
        raise AdapterError(f"{layer.path}: adapters of a grouped convolution cannot be combined.")
    return A, B


def _scaled(layer: LoraLayer, parts: dict[str, float]) -> list[float]:
    return [weight * layer.scaling[name] for name, weight in parts.items()]


def _limit(layer: LoraLayer) -> int:
    return min(layer.out_features, layer.in_features)


def best_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A ``(rank, in)`` and B ``(out, rank)`` with B·A nearest to ``matrix`` (Eckart and Young)."""
    U, S, V = torch.linalg.svd(matrix, full_matrices=False)
    return V[:rank], U[:, :rank] * S[:rank]


def factors_of_sum(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The same for ``matrix = B·A``, A ``(n, in)`` and B ``(out, n)``, without forming it.

    The decomposition is that of an (n, n) matrix, between the orthogonal bases of A and B.
    """
    basis_B, small_B = torch.linalg.qr(B)
    basis_A, small_A = torch.linalg.qr(A.t())
    left, right = best_factors(small_B @ small_A.t(), rank)
    return left @ basis_A.t(), basis_B @ right
