"""The tensors of a module as a forward saw them, for a backward that reads the module again.

Autograd saves tensors and compares their version counters. What is read again instead (a packed
weight would cost 16 bits an element) is compared in the same way here: a tensor that was changed in
place is an error as in torch, so is one that got other values by its ``.data``, which torch does
not see, and one that was exchanged (`torch.func.functional_call`) is the one that counts. Nothing
is said of tensors that sharding has released in between.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from quantlora.errors import ChangedBaseError
from quantlora.formats.tensor_mark import TensorMark, version
from quantlora.formats.twin import twin

_PLAIN = (Tensor, nn.Parameter)


class Seen:
    """What ``module`` holds now.

    Args:
        path: its place, for messages.
        undo_repacking: called before tensors are compared, so that those which a library itself
            has repacked are not taken for changed (`Preparation.undo_repacking`).
    """

    def __init__(
        self, module: nn.Module, path: str, undo_repacking: Callable[[], object] | None = None
    ) -> None:
        self.path, self._undo_repacking = path, undo_repacking
        if undo_repacking is not None:
            undo_repacking()
        self._tensors = [(name, tensor, TensorMark(tensor)) for name, tensor in _tensors(module)]

    def exchanged(self, module: nn.Module) -> dict[str, Tensor]:
        """Those that ``module`` has others for by now.

        Raises:
            ChangedBaseError: one of them was changed in place.
        """
        if self._undo_repacking is not None:
            self._undo_repacking()
        now = dict(_tensors(module))
        found = {}
        for name, tensor, before in self._tensors:
            if tensor is not now.get(name) and _elsewhere(tensor, now.get(name)):
                found[name] = tensor
            elif tensor is not now.get(name):
                continue
            if change := _change(tensor, before):
                raise ChangedBaseError(
                    f"{self.path}: {name} {change} between forward and backward, and the gradient "
                    f"would be of another model. Change it before forward or after backward."
                )
        return found

    def unchanged(self, module: nn.Module) -> bool:
        """Whether ``module`` still holds the same tensors, with the same values for certain."""
        now = dict(_tensors(module))
        return len(now) == len(self._tensors) and all(
            now.get(name) is tensor and before.is_still(tensor)
            for name, tensor, before in self._tensors
        )

    def layer(self, module: nn.Module) -> nn.Module:
        """``module`` as it was, whatever tensors it has now."""
        found = self.exchanged(module)
        if not found:
            return module
        self.check_own(found)
        return twin(module, found)

    def check_own(self, found: dict[str, Tensor]) -> None:
        """Only tensors of the module itself can be put back."""
        if inner := [name for name in found if "." in name]:
            raise ChangedBaseError(
                f"{self.path}: {inner[0]} is another tensor in backward than in forward: call "
                f"backward while the tensors of the forward are in place."
            )


def _change(tensor: Tensor, before: TensorMark) -> str:
    """What was done to ``tensor`` since ``before``; empty for nothing."""
    if before.was_written(tensor):
        versions = f"version {version(tensor)}, expected {before.version}"
        return f"has been modified by an inplace operation ({versions})"
    return "was given other values (by its .data)" if before.was_assigned(tensor) else ""


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    if module._modules:
        yield from itertools.chain(module.named_parameters(), module.named_buffers())
        return
    for name, tensor in itertools.chain(module._parameters.items(), module._buffers.items()):
        if tensor is not None:
            yield name, tensor


def _elsewhere(tensor: Tensor, now: Tensor | None) -> bool:
    """Whether ``tensor`` still has its values, and ``now`` shows others."""
    if type(tensor) not in _PLAIN:
        return True
    storage = tensor.untyped_storage()
    if tensor.is_meta or not storage.nbytes():
        return False
    if now is None or type(now) not in _PLAIN:
        return True
    return bool(storage._cdata != now.untyped_storage()._cdata)
