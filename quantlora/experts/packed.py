"""`PackedExperts`: a module of fused experts whose matrices are packed stacks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from quantlora.errors import AdapterFileError
from quantlora.experts.layout import ExpertsLayout
from quantlora.experts.products import routed_experts
from quantlora.files.plain_owners import plain_owner
from quantlora.formats.expert_stack import ExpertStack

#: What `nn.Module` keeps its tensors and submodules in.
_TABLES = ("_parameters", "_buffers", "_modules")


class PackedExperts(nn.Module):
    """Stands where the float module stood, with its attributes, biases and methods.

    Not of its class, for that expects float parameters. Its state dict has the stacks' tensors
    under the parameters' names: ``gate_up_proj.packed`` and so on.
    """

    kind: type[nn.Module]
    layout: ExpertsLayout

    def __init__(
        self, like: nn.Module, layout: ExpertsLayout, stacks: Mapping[str, ExpertStack]
    ) -> None:
        """Args: like: the float module, left as it is. stacks: for one or both of its matrices."""
        super().__init__()
        take_over(like, self)
        self.kind = like.kind if isinstance(like, PackedExperts) else type(like)
        self.layout = layout
        for name, stack in stacks.items():
            self._parameters.pop(name, None)
            setattr(self, name, stack)
        self.train(like.training)

    @property
    def stacks(self) -> dict[str, ExpertStack]:
        """The packed ones of the two matrices, by name."""
        matrices = {name: getattr(self, name) for name in self.layout.names}
        return {name: stack for name, stack in matrices.items() if isinstance(stack, ExpertStack)}

    @property
    def in_checkpoints(self) -> bool:
        """Whether Transformers loads a checkpoint of these stacks, see `ExpertStack`."""
        return all(stack.in_checkpoints for stack in self.stacks.values())

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if not self.in_checkpoints and (found := plain_owner()) is not None:
            owner, method = found
            raise AdapterFileError(
                f"{owner}.{method} would write packed experts ({self.kind.__name__}), which no "
                f"{owner} reads: use quantlora.save_packed and quantlora.load, or write float "
                f"experts with quantlora.export_merged."
            )
        super()._save_to_state_dict(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return cast(Tensor, routed_experts(self, self.layout, *args, *kwargs.values()))

    def unpacked(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """A module of the float class with ``tensors`` in place of the stacks."""
        new: nn.Module = object.__new__(self.kind)
        nn.Module.__init__(new)
        take_over(self, new)
        for name in ("kind", "layout"):
            vars(new).pop(name)
        for name in self.stacks:
            del new._modules[name]
        for name, tensor in tensors.items():
            new._parameters.pop(name, None)
            new.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        return new

    def __getattr__(self, name: str) -> Any:
        """Methods of the float class: its gate, and whatever that calls."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            kind = self.__dict__.get("kind")
            if kind is None or name.startswith("__"):
                raise
            found = inspect.getattr_static(kind, name, None)
            if found is None:
                raise
        return found.__get__(self, kind) if hasattr(found, "__get__") else found

    def extra_repr(self) -> str:
        return self.kind.__name__


def take_over(old: nn.Module, new: nn.Module) -> None:
    """Give ``new`` the attributes, parameters, buffers and submodules of ``old``, shared."""
    for name, value in vars(old).items():
        if name in _TABLES:
            vars(new)[name] = type(value)(value)
        elif name == "_non_persistent_buffers_set":
            vars(new)[name] = set(value)
        elif name not in vars(new):
            vars(new)[name] = value
