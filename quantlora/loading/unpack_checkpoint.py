"""A packed checkpoint is read: empty tensors where config.json names them, then the layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from quantlora.discovery.diagnosis import diagnosed
from quantlora.discovery.registration import registry
from quantlora.errors import ConfigError
from quantlora.experts.layout import ExpertsLayout
from quantlora.experts.packed import PackedExperts
from quantlora.files.safetensors_file import TENSOR_TYPES
from quantlora.formats.expert_stack import ExpertStack
from quantlora.formats.finite import not_finite
from quantlora.formats.layer_files import PackedState
from quantlora.transformers_models import in_this_model

#: What one module's note is to have, and of which type.
_FIELDS: dict[str, type] = {"format": str, "settings": dict, "tensors": dict}


class EmptyTensors(nn.Module):
    """The place of a packed layer's tensors by name, without values."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        super().__init__()
        for name, (dtype, *shape) in tensors.items():
            *parents, own = name.split(".")
            owner: nn.Module = self
            for parent in parents:
                if parent not in owner._modules:
                    owner.add_module(parent, nn.Module())
                owner = owner.get_submodule(parent)
            empty = torch.empty(shape, dtype=TENSOR_TYPES[dtype], device="meta")
            owner.register_buffer(own, empty)


class PackedCheckpoint:
    """What ``quantization_config`` says, and how it is carried out around the loading."""

    def __init__(self, modules: Mapping[str, Any]) -> None:
        self._modules = {path: _checked(path, note) for path, note in modules.items()}
        self._layouts: dict[str, ExpertsLayout] = {}

    def prepare(self, model: nn.Module) -> None:
        """Put empty tensors where the packed ones will be loaded."""
        self._modules = in_this_model(model, self._modules)
        for path, note in self._modules.items():
            parent, _, own = path.rpartition(".")
            owner = model.get_submodule(parent)
            if note.get("experts"):
                self._empty_stack(owner, parent, own)
            setattr(owner, own, EmptyTensors(note["tensors"]))

    def _empty_stack(self, owner: nn.Module, path: str, name: str) -> None:
        layout = self._layouts.get(path) or ExpertsLayout.of(owner)
        if layout is None or name not in layout.names:
            raise ConfigError(f"{path}.{name}: {type(owner).__name__} has no such experts.")
        self._layouts[path] = layout
        owner._parameters.pop(name)
        cast(Any, owner)._is_hf_initialized = True  # else its weights would be drawn anew

    def finish(self, model: nn.Module) -> None:
        """Make the packed layers from the tensors that have been loaded."""
        stacks: dict[str, dict[str, ExpertStack]] = {}
        for path, note in self._modules.items():
            parent, _, own = path.rpartition(".")
            state = PackedState(note["settings"], _loaded(model.get_submodule(path), path))
            quantizer = registry().quantizer(note["format"])
            with diagnosed(quantizer):
                if note.get("experts"):
                    stacks.setdefault(parent, {})[own] = quantizer.from_experts_state(state)
                else:
                    model.set_submodule(path, quantizer.from_packed_state(state).eval())
        for path, packed in stacks.items():
            owner = model.get_submodule(path)
            for name in packed:
                del owner._modules[name]
            model.set_submodule(path, PackedExperts(owner, self._layouts[path], packed))


def _loaded(module: nn.Module, path: str) -> dict[str, Tensor]:
    tensors = dict(module.named_buffers())
    for name, tensor in tensors.items():
        if tensor.is_meta or not getattr(tensor, "_is_hf_initialized", False):
            raise ConfigError(
                f"{path}.{name} is not among the checkpoint's tensors: it is damaged or not whole."
            )
        del tensor._is_hf_initialized  # type: ignore[attr-defined]
    if bad := not_finite(tensors):
        raise ConfigError(
            f"{path}.{bad[0]} holds NaN or infinite values, which spoil the layer: the checkpoint "
            f"is damaged, or was made of such weights."
        )
    return tensors


def _checked(path: str, note: Any) -> Mapping[str, Any]:
    fits = isinstance(note, Mapping) and all(
        isinstance(note.get(name), kind) for name, kind in _FIELDS.items()
    )
    if not fits or any(entry[0] not in TENSOR_TYPES for entry in note["tensors"].values()):
        raise ConfigError(
            f"config.json: the entry for {path} in quantization_config is damaged, or written by a "
            f"later quantlora."
        )
    return cast("Mapping[str, Any]", note)
