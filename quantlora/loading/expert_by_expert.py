"""Checkpoints that hold experts one by one: each is packed before the next one is read.

Transformers reads all experts of a layer, stacks them and joins gate and up, for which it holds
them three times over. Here its operations are run for one expert at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

from torch import Tensor
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
)


class ExpertByExpert(WeightConverter):
    """A conversion that stacks experts and does nothing across them."""

    __slots__ = ()

    @classmethod
    def of(cls, conversions: Iterable[Any]) -> list[Any]:
        """``conversions``, those that work so in this class."""
        return [_as(cls, each) if works_by_expert(each) else each for each in conversions]

    def convert(self, layer_name: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        job: Any = self.quantization_operation
        numbers = {len(tensors) for tensors in self.collected_tensors.values()}
        if job is None or len(numbers) != 1:
            found: dict[str, Any] = super().convert(layer_name, *args, **kwargs)
            return found
        info = kwargs.get("loading_info")
        missing = None if info is None else info.missing_keys
        job.convert_experts(layer_name, self._each(layer_name, kwargs), kwargs["model"], missing)
        return {}

    def _each(self, layer_name: str, kwargs: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
        """The name of the stack, and of each expert ``(1, ...)`` its part of it."""
        collected = dict(self.collected_tensors)
        self.collected_tensors = defaultdict(list)
        given = {name: kwargs.get(name) for name in ("model", "config")}
        for expert in range(len(next(iter(collected.values())))):
            for pattern, tensors in collected.items():
                self.collected_tensors[pattern] = [tensors[expert]]
            yield next(iter(super().convert(layer_name, **given).items()))


def works_by_expert(conversion: Any) -> bool:
    """Whether the conversion stacks along a first dimension, then works on the others only."""
    if type(conversion) is not WeightConverter or len(conversion.target_patterns) != 1:
        return False
    first, *others = conversion.operations
    return (
        isinstance(first, MergeModulelist)
        and first.dim == 0
        and all(map(_within_an_expert, others))
    )


def _within_an_expert(operation: Any) -> bool:
    if isinstance(operation, Concatenate):
        return operation.dim > 0
    if isinstance(operation, Transpose):
        return min(operation.dim0, operation.dim1) > 0 and not operation.check_dims
    return False


def _as(cls: type[WeightConverter], conversion: WeightConverter) -> WeightConverter:
    new = deepcopy(conversion)
    new.__class__ = cls
    return new
