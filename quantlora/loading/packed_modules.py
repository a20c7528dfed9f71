"""The packed layers and stacks of a model, taken apart for files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from quantlora.discovery.registration import registry
from quantlora.errors import BackendError
from quantlora.experts.packed import PackedExperts
from quantlora.files.safetensors_file import TENSOR_TYPES
from quantlora.formats.layer_files import PackedState
from quantlora.formats.offloaded import is_offloaded

#: The format's names of dtypes.
DTYPE_NAMES = {dtype: name for name, dtype in TENSOR_TYPES.items()}


@dataclass(frozen=True)
class PackedModule:
    """One layer, or one stack of experts.

    Args:
        path: of a stack, with its name: ``layers.0.mlp.experts.down_proj``.
        format: the quantizer's name.
        experts: whether it is a stack.
    """

    path: str
    format: str
    experts: bool
    state: PackedState

    def note(self) -> dict[str, Any]:
        """What config.json says of it: enough to make it without its values."""
        tensors = {n: [DTYPE_NAMES[t.dtype], *t.shape] for n, t in self.state.tensors.items()}
        own = {"format": self.format, "settings": dict(self.state.settings), "tensors": tensors}
        return {**own, "experts": True} if self.experts else own


def packed_modules(model: nn.Module) -> Iterator[PackedModule]:
    """Each once, at its first path.

    Raises `BackendError` for a format that cannot be written, or a layer whose weights are away.
    """
    for path, module in model.named_modules():
        yield from parts_of(path, module)


def parts_of(path: str, module: nn.Module) -> Iterator[PackedModule]:
    """The packed layer that ``module`` is, or its packed stacks; nothing of another module."""
    if isinstance(module, PackedExperts):
        for name, stack in module.stacks.items():
            state = registry().quantizer(stack.format).experts_state(stack)
            yield PackedModule(f"{path}.{name}", stack.format, True, state)
    elif (quantizer := registry().packed_format(module)) is not None:
        if is_offloaded(module):
            raise BackendError(
                f"{path}: its weights are offloaded (device_map); load the model whole to save "
                f"it packed."
            )
        yield PackedModule(path, quantizer.name, False, quantizer.packed_state(module))


def float_tensors(model: nn.Module, packed: set[str]) -> Iterator[tuple[str, Tensor]]:
    """All other tensors by name, each once: tied ones under their first name.

    Args:
        packed: paths of packed layers and stacks.
    """
    seen: set[int] = set()
    for path, module in model.named_modules():
        if _is_within(path, packed):
            continue
        passing = module._non_persistent_buffers_set
        buffers = {n: b for n, b in module._buffers.items() if n not in passing}
        for name, tensor in {**module._parameters, **buffers}.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{path}.{name}" if path else name, tensor.detach()


def _is_within(path: str, packed: set[str]) -> bool:
    """Whether ``path``, or one above it, is among ``packed``."""
    parts = path.split(".")
    return any(".".join(parts[:depth]) in packed for depth in range(1, len(parts) + 1))
