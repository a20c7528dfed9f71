"""`LayerFiles`: how the packed layers of a format are written to files, and read again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from quantlora.errors import BackendError

if TYPE_CHECKING:
    from quantlora.formats.expert_stack import ExpertStack


@dataclass(frozen=True)
class PackedState:
    """A packed layer, or a stack of experts, taken apart.

    Args:
        settings: what makes the layer with its tensors: sizes, bits, dtypes by their names; as
            JSON holds it.
        tensors: plain tensors by name. A name may have dots, and be no beginning of another one.
    """

    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class LayerFiles:
    """The part of `Quantizer` that is about files; all of it is optional."""

    name: ClassVar[str]

    def checkpoint_config(
        self, layers: Mapping[str, nn.Module], linears: Mapping[str, nn.Module]
    ) -> dict[str, Any] | None:
        """Transformers' ``quantization_config`` for a checkpoint that holds these layers' states.

        Args:
            layers: the packed layers by path.
            linears: all linear layers of the float model by path, with or without weights.

        Returns None where Transformers has no way to load the format. Raises `BackendError` where
        it has one, but not for this model.
        """
        return None

    def checkpoint_tensors(self, layer: nn.Module, model: nn.Module) -> Mapping[str, Tensor]:
        """The layer's tensors as the checkpoint files of ``model`` have them.

        Override it where the library changes them on their way into memory.
        """
        return layer.state_dict()

    def packed_state(self, layer: nn.Module) -> PackedState:
        """The layer for `quantlora.save_packed`, bias included."""
        raise BackendError(
            f"format {self.name!r} does not say how its layers are written to a packed checkpoint "
            f"(Quantizer.packed_state)."
        )

    def from_packed_state(self, state: PackedState) -> nn.Module:
        """The layer that ``state`` was taken from, bit for bit; it may hold its very tensors."""
        raise BackendError(f"format {self.name!r} cannot read layers of a packed checkpoint.")

    def experts_state(self, stack: ExpertStack) -> PackedState:
        """The same for a stack of experts."""
        raise BackendError(
            f"format {self.name!r} does not say how stacks of experts are written to a packed "
            f"checkpoint (Quantizer.experts_state)."
        )

    def from_experts_state(self, state: PackedState) -> ExpertStack:
        """The same for a stack of experts."""
        raise BackendError(f"format {self.name!r} cannot read experts of a packed checkpoint.")
