"""`TrainedBias`: a bias of the model itself that is trained with an adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar
from weakref import WeakSet

from torch import Tensor, nn

_NAME = "bias"


@dataclass(eq=False)
class TrainedBias:
    """The adapter's own parameter for it replaces the model's while the adapter is active.

    PEFT trains the model's parameter itself, so there only one adapter can have biases, and the
    base is not the base any more when it is disabled.

    Args:
        names: in an adapter file; the module may be at several paths.
        owner: the module whose ``bias`` it is; of a LoRA layer, the base from before any merge.
        plain: the model's own; some packed formats have it as a buffer, or as a mere attribute.
        parameter: the adapter's.
    """

    names: tuple[str, ...]
    owner: nn.Module
    plain: Tensor
    parameter: nn.Parameter
    attribute: bool = field(init=False, default=False)
    #: All there are, of every model.
    alive: ClassVar[WeakSet[TrainedBias]] = WeakSet()

    def __post_init__(self) -> None:
        self.attribute = vars(self.owner).get(_NAME) is self.plain
        self.alive.add(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copied, or out of a pickle."""
        vars(self).update(state)
        self.alive.add(self)

    @property
    def placed(self) -> bool:
        """Whether the adapter's is in place."""
        return self.owner._parameters.get(_NAME) is self.parameter

    def install(self) -> None:
        if not self.placed:
            self.parameter.data = self.parameter.data.to(self.plain)
            for table in (self.owner._buffers, vars(self.owner)):
                table.pop(_NAME, None)
            self.owner._parameters[_NAME] = self.parameter

    def restore(self) -> None:
        if self.placed:
            self.plain.data = self.plain.data.to(self.parameter)
            if isinstance(self.plain, nn.Parameter):
                self.owner._parameters[_NAME] = self.plain
            else:
                del self.owner._parameters[_NAME]
                table = vars(self.owner) if self.attribute else self.owner._buffers
                table[_NAME] = self.plain


def own_bias(module: nn.Module) -> Tensor | None:
    """The bias that ``module`` has as a parameter."""
    bias = module._parameters.get(_NAME)
    return bias if bias is not None and bias.is_floating_point() else None


def unregistered_bias(layer: nn.Module, packed: bool) -> Tensor | None:
    """The bias that is no parameter: a buffer or, in a ``packed`` layer, a mere attribute.

    An attribute of a float layer is computed anew before each forward.
    """
    found = layer._buffers.get(_NAME)
    if found is None and packed:
        found = vars(layer).get(_NAME)
    return found if isinstance(found, Tensor) and found.is_floating_point() else None
