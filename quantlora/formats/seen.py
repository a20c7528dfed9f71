"""The tensors of a module as a forward saw them, for a backward that reads the module again.

Autograd saves tensors and compares their version counters. What is read again instead (a packed
weight would cost 16 bits an element) is compared in the same way here: a tensor that was changed in
place is an error as in torch, and one that was exchanged (`torch.func.functional_call`) is the one
that counts. Nothing is said of tensors that sharding has released in between.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from quantlora.errors import ChangedBaseError
from quantlora.formats.twin import twin

_PLAIN = (Tensor, nn.Parameter)


class Seen:
    """What ``module`` holds now.

    Args:
        path: its place, for messages.
    """

    def __init__(self, module: nn.Module, path: str) -> None:
        self.path = path
        self._tensors = [(name, tensor, version(tensor)) for name, tensor in _tensors(module)]

    def exchanged(self, module: nn.Module) -> dict[str, Tensor]:
        """Those that ``module`` has others for by now.

        Raises:
            ChangedBaseError: one of them was changed in place.
        """
        now = dict(_tensors(module))
        found = {}
        for name, tensor, before in self._tensors:
            if tensor is not now.get(name) and _elsewhere(tensor, now.get(name)):
                found[name] = tensor
            elif tensor is not now.get(name):
                continue
            if version(tensor) != before:
                raise ChangedBaseError(
                    f"{self.path}: {name} has been modified by an inplace operation between "
                    f"forward and backward (version {version(tensor)}, expected {before}), and the "
                    f"gradient would be of another model. Change it before forward or after "
                    f"backward."
                )
        return found

    def unchanged(self, module: nn.Module) -> bool:
        """Whether ``module`` still holds the same tensors, with the same values for certain."""
        now = dict(_tensors(module))
        return len(now) == len(self._tensors) and all(
            now.get(name) is tensor and version(tensor) == before >= 0
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


def version(tensor: Tensor) -> int:
    """Rises with each change in place; tensors made in inference mode do not count."""
    return -1 if tensor.is_inference() else tensor._version


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


def transformed() -> bool:
    """Whether `torch.func` (grad, vmap, jvp) or forward-mode differentiation is at work."""
    dual: int = torch.autograd.forward_ad._current_level
    return dual >= 0 or torch._C._are_functorch_transforms_active()
