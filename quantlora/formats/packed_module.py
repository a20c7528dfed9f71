"""`PackedModule`: a module of codes, whose ``.to(dtype)`` is about what comes out of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self


class PackedModule(nn.Module):
    """A frozen module that holds codes, and scales in the dtype that they were computed in.

    ``.to(...)``, ``.half()`` and their like move every tensor, and keep the dtype of each buffer
    (those of submodules too) and of each parameter that is no float: scales rounded to 16 bits
    would be those of another weight. Float parameters, as a bias, and `dtype` follow.
    """

    #: That of the float weight and of the bias: what comes out where no input says it.
    dtype: torch.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        buffers = {id(tensor): tensor for tensor in self.buffers()}

        def exact(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            follows = tensor.is_floating_point() and id(tensor) not in buffers
            return moved if follows else _as_before(moved, tensor)

        super()._apply(exact, recurse)  # type: ignore[no-untyped-call]
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self


def _as_before(moved: Tensor, tensor: Tensor) -> Tensor:
    """``tensor`` where ``moved`` is, in its own dtype and with its own values."""
    return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)
