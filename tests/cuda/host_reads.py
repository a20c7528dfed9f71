"""What would make the host wait for an accelerator, found on a machine that has none.

torch's meta tensors stand for those of the accelerator: they have shapes and no values, so whatever
asks for a value (``.item()``, ``if tensor``, ``.cpu()``, a shape that depends on numbers) fails
there, in forward and in backward. Copies between host and device are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    is_traceable_wrapper_subclass,
    transform_subclass,
)

#: Operations whose result the host waits for.
READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal")


class HostReads(TorchDispatchMode):
    """Within it ``counts`` are the operations that wait, and ``copies`` between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.counts[name] += name in READS
        result = func(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_"):
            given = [*args, result]
            devices = {tensor.device.type for tensor in given if isinstance(tensor, Tensor)}
            self.counts["copies"] += len(devices) > 1
        return result

    @property
    def found(self) -> dict[str, int]:
        return {name: count for name, count in self.counts.items() if count}


def moved(module: nn.Module, move: Callable[[Tensor], Tensor]) -> nn.Module:
    """``module`` with all of its tensors replaced, and those that packed weights carry along."""
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            table.update({n: _moved(t, move) for n, t in table.items() if t is not None})
        if hasattr(part, "state"):  # of bitsandbytes' 8-bit layers
            _move_attributes(part.state, move)
        if isinstance(meta := vars(part).get("meta"), dict):  # of HQQ's
            meta.update({n: _plain(t, move) for n, t in meta.items() if isinstance(t, Tensor)})
            _move_attributes(part, move)
    return module


def _plain(tensor: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
    return move(tensor.detach().as_subclass(Tensor))


def _moved(tensor: Any, move: Callable[[Tensor], Tensor]) -> Any:
    if is_traceable_wrapper_subclass(tensor):  # torchao's
        inner = transform_subclass(tensor.detach(), lambda _, part: _plain(part, move))
        return nn.Parameter(inner, False)
    plain = _plain(tensor, move)
    if type(tensor) is Tensor:
        return plain
    new = Tensor._make_subclass(type(tensor), plain, tensor.requires_grad)
    new.__dict__.update(vars(tensor))
    _move_attributes(new, move)
    return new


def _move_attributes(owner: Any, move: Callable[[Tensor], Tensor]) -> None:
    for name, value in list(vars(owner).items()):
        if isinstance(value, Tensor):
            setattr(owner, name, _plain(value, move))
        elif type(value).__name__ == "QuantState":
            _move_attributes(value, move)
