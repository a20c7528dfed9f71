"""The samples of a batch that belong to one adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from quantlora.errors import AdapterError, LayerError


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """What a layer is called with, by position or by keyword."""
    return cast(Tensor, args[0] if args else next(iter(kwargs.values()), None))


def only_input(args: tuple[Any, ...], kwargs: Mapping[str, Any], path: str) -> Tensor:
    """The same, for a layer that takes nothing else."""
    if len(args) + len(kwargs) != 1:
        more = ", ".join([*(["more than one input"] if len(args) > 1 else []), *kwargs])
        raise LayerError(
            f"{path}: a linear layer with adapters takes its input and nothing else, got "
            f"{more or 'none'}."
        )
    return first_input(args, kwargs)


class PromptAdapters(tuple[str, ...]):
    """One name for each prompt; the batch holds the prompts, or ``copies`` in a row of each.

    An encoder runs before generation makes beams of its output, the decoder after.
    """

    copies: int = 1

    def of_batch(self, size: int) -> tuple[str, ...]:
        """The names of a batch of ``size`` samples."""
        if size != len(self) * self.copies:
            return self
        return tuple(name for name in self for _ in range(self.copies))


def sub_batches(
    names: Sequence[str], known: Sequence[str], x: Tensor, path: str, dim: int = 0
) -> list[tuple[str, Tensor]]:
    """For each adapter of ``known`` that occurs in ``names``, the indices of its samples."""
    if isinstance(names, PromptAdapters):
        names = names.of_batch(x.shape[dim])
    if len(names) != x.shape[dim]:
        raise AdapterError(
            f"{path}: adapter_names has {len(names)} entries, but the batch has {x.shape[dim]} "
            f"samples: give one name per sample (after beams and repeats are expanded). Where the "
            f"model computes with (time, batch, features), use mixed_batch(..., batch_dim=1)."
        )
    return [
        (
            name,
            torch.tensor([i for i, sample in enumerate(names) if sample == name], device=x.device),
        )
        for name in known
        if name in names
    ]


def pick_samples(x: Tensor, rows: Tensor | None, dim: int = 0) -> Tensor:
    """The samples ``rows`` of ``x``, along ``dim``; all of them for None."""
    return x if rows is None else x.index_select(dim, rows)


def add_samples(y: Tensor, rows: Tensor | None, delta: Tensor, dim: int = 0) -> Tensor:
    """``y`` with ``delta`` added to its samples ``rows``."""
    delta = delta.to(y.dtype)
    return y + delta if rows is None else y.index_add(dim, rows, delta)


def put_samples(y: Any, rows: Tensor, other: Any, samples: int, path: str) -> Any:
    """``y`` with the samples ``rows`` of ``other``, an output of the same form: tensors in tuples,
    lists, dicts.

    Raises `AdapterError` for a tensor that is not by sample, and differs.
    """
    mine, form = tree_flatten(y)
    theirs, other_form = tree_flatten(other)
    if form != other_form:
        raise AdapterError(f"{path}: its trained copy gives another kind of output in this batch.")
    return tree_unflatten(
        [_put(ours, rows, two, samples, path) for ours, two in zip(mine, theirs, strict=True)], form
    )


def _put(y: Any, rows: Tensor, other: Any, samples: int, path: str) -> Any:
    if not isinstance(y, Tensor) or not isinstance(other, Tensor):
        return y
    if y.ndim and len(y) == samples and y.shape == other.shape:
        return y.index_copy(0, rows, other.index_select(0, rows).to(y.dtype))
    if y.shape == other.shape and torch.equal(y, other.to(y.dtype)):
        return y
    raise AdapterError(
        f"{path}: an output {tuple(y.shape)} of this module (modules_to_save) is not by sample, so "
        f"its adapters cannot share a batch: run them one by one."
    )
