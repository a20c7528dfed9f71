"""The names and shapes that checkpoints on the hub have: Transformers' conversions, backwards.

In Transformers 5 a mixture's experts are joined in memory and one by one in files, and parts of
vision-language models have been renamed. Its ``save_pretrained`` turns that round over a whole
state dict; here it is done tensor by tensor. Whatever reads checkpoints by the hub's names (vLLM,
SGLang, older Transformers) then reads these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from quantlora.files.hub_conversions import reversed_conversions

#: Stacks of matrices; in a packed export only these are float and of three dimensions.
_STACKED = 3


def hub_names(
    model: nn.Module, tensors: Iterable[tuple[str, Tensor]], packed: bool
) -> Iterator[tuple[str, Tensor]]:
    """``tensors`` by name, renamed, split and joined as files have them.

    Args:
        packed: some are the codes of packed layers: these are renamed, and neither split nor
            joined, for which they would have to be unpacked.
    """
    conversions = reversed_conversions(model)
    if conversions is None:
        yield from tensors
        return
    yield from _Backwards(model, *conversions).convert(tensors, packed)


class _Backwards:
    """Args: converters, renamings: Transformers', turned round already."""

    def __init__(self, model: Any, converters: list[Any], renamings: list[Any]) -> None:
        self.model, self.converters, self.renamings = model, converters, renamings
        self._waiting: dict[str, Any] = {}
        self._of = {pattern: c for c in converters for pattern in c.source_patterns}

    def convert(
        self, tensors: Iterable[tuple[str, Tensor]], packed: bool
    ) -> Iterator[tuple[str, Tensor]]:
        from transformers.core_model_loading import apply_converters

        for name, tensor in tensors:
            target, pattern = name, None
            if not packed or (tensor.is_floating_point() and tensor.dim() == _STACKED):
                target, pattern = apply_converters(name, self.converters)
            if pattern is None:
                yield self._renamed(name), tensor
                continue
            waiting = self._waiting.setdefault(target, deepcopy(self._of[pattern]))
            waiting.add_tensor(target, name, pattern, tensor)
            if len(waiting.collected_tensors) == len(waiting.source_patterns):
                yield from self._finished(target)
        for target in list(self._waiting):  # parts that this model has not
            yield from self._finished(target)

    def _finished(self, target: str) -> Iterator[tuple[str, Tensor]]:
        conversion = self._waiting.pop(target)
        found = conversion.convert(target, model=self.model, config=self.model.config)
        for name, value in found.items():
            yield self._renamed(name), value[0] if isinstance(value, list) else value

    def _renamed(self, name: str) -> str:
        from transformers.core_model_loading import apply_renamings

        renamed: str = apply_renamings(name, self.renamings)
        return renamed
