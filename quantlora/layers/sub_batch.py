"""The samples of a batch that belong to one adapter."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class SubBatches:
    """The adapters of a mixed batch, and whose samples are whose.

    Tensors are taken apart and put together as a whole, not once for each adapter: each would
    copy the whole batch, in backward too.

    Args:
        names: the adapters.
        sizes: how many samples each has.
        order: the indices of the samples, adapter by adapter; None where that is the batch itself.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    order: Tensor | None

    @classmethod
    def of(cls, samples: Mapping[str, list[int]], x: Tensor, dim: int) -> SubBatches:
        """Of the samples of each adapter, in a batch like ``x``."""
        order = [index for own in samples.values() for index in own]
        same = order == list(range(x.shape[dim]))
        sizes = tuple(map(len, samples.values()))
        return cls(tuple(samples), sizes, None if same else _index(order, x))

    def split(self, x: Tensor, dim: int) -> tuple[Tensor, ...]:
        """``x`` by adapter; views of it where the samples are in order."""
        if not self.names:
            return ()
        own = x if self.order is None else x.index_select(dim, self.order)
        return torch.split(own, list(self.sizes), dim)

    def add(self, y: Tensor, deltas: Sequence[Tensor], dim: int) -> Tensor:
        """``y`` with ``deltas``, one for each adapter, added to its samples."""
        delta = torch.cat([own.to(y.dtype) for own in deltas], dim)
        return y + delta if self.order is None else y.index_add(dim, self.order, delta)

    @contextmanager
    def changing(self, y: Tensor, dim: int) -> Iterator[tuple[Tensor, ...]]:
        """``y`` by adapter; what the block writes into the parts is in ``y`` afterwards."""
        own = y if self.order is None else y.index_select(dim, self.order)
        yield torch.split(own, list(self.sizes), dim) if self.names else ()
        if self.order is not None:
            y.index_copy_(dim, self.order, own)


def sub_batches(
    names: Sequence[str], known: Container[str], x: Tensor, path: str, dim: int = 0
) -> list[tuple[str, Tensor]]:
    """For each adapter of ``known`` that occurs in ``names``, the indices of its samples."""
    samples = samples_by_adapter(names, known, x, path, dim)
    return [(name, _index(own, x)) for name, own in samples.items()]


def _index(samples: list[int], like: Tensor) -> Tensor:
    """On an accelerator nobody waits for it to arrive."""
    return torch.tensor(samples, dtype=torch.long).to(like.device, non_blocking=True)


def samples_by_adapter(
    names: Sequence[str], known: Container[str], x: Tensor, path: str, dim: int = 0
) -> dict[str, list[int]]:
    """The indices of the samples of each adapter of ``known`` that occurs in ``names``."""
    if isinstance(names, PromptAdapters):
        names = names.of_batch(x.shape[dim])
    if len(names) != x.shape[dim]:
        raise AdapterError(
            f"{path}: adapter_names has {len(names)} entries, but the batch has {x.shape[dim]} "
            f"samples: give one name per sample (after beams and repeats are expanded). Where the "
            f"model computes with (time, batch, features), use mixed_batch(..., batch_dim=1)."
        )
    samples: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        samples.setdefault(name, []).append(index)
    return {name: own for name, own in samples.items() if name in known}


def pick_samples(x: Tensor, rows: Tensor | None, dim: int = 0) -> Tensor:
    """The samples ``rows`` of ``x``, along ``dim``; all of them for None."""
    return x if rows is None else x.index_select(dim, rows)


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
