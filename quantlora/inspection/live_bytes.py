"""`LiveBytes`: how much memory tensors take while a block of code runs, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows each storage that an operation makes within the block, until it is freed.

    Works on any device, for it watches torch's operations and not an allocator: an allocator's
    rounding and a kernel's own workspace are not in it. Results are the same bits as without.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._events: list[tuple[int, int]] = []  # (number of the storage, bytes more or less)
        make: Any = WeakIdKeyDictionary  # untyped upstream
        self._numbers: Any = make()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._numbers.setdefault(tensor.untyped_storage(), -1)  # made by somebody else
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if storage in self._numbers:
            return
        number, count = len(self._events), storage.nbytes()
        self._numbers[storage] = number
        self._events.append((number, count))
        weakref.finalize(storage, self._events.append, (number, -count)).atexit = False

    def peak(self, without: Iterable[Tensor] = ()) -> int:
        """Most bytes alive at one moment, leaving out the storages of these tensors."""
        left_out = {self._numbers.get(tensor.untyped_storage()) for tensor in without}
        changes = [count for number, count in self._events if number not in left_out]
        return max(accumulate(changes), default=0)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
