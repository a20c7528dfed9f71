"""`PackOnArrival`: takes each tensor from Transformers' loader, and packs what is complete.

Transformers reads a checkpoint tensor by tensor, joins the experts of one layer, and gives what
``param_needs_quantization`` names to an operation. There a layer is packed as soon as all of its
tensors are there, and a stack of experts as it comes; their float tensors are then freed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableSet, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from quantlora.discovery.diagnosis import diagnosed
from quantlora.errors import BackendError
from quantlora.experts.packed import PackedExperts
from quantlora.experts.stacks_format import pack_experts, pack_stack
from quantlora.formats.expert_stack import ExpertStack
from quantlora.formats.finite import check_packable, check_packed
from quantlora.formats.quantize_options import checked_options
from quantlora.formats.quantizer import Quantizer
from quantlora.layers.experts import experts_layout
from quantlora.loading.free_memory import give_back
from quantlora.loading.pack_plan import Wanted, packing_plan
from quantlora.loading.packed_modules import parts_of
from quantlora.loading.packing_folder import PackingFolder
from quantlora.loading.pattern_options import check_patterns, options_of
from quantlora.wrapping.bases import as_linear
from quantlora.wrapping.plan import PlannedLayer

#: An option of formats that quantize over the whole float model.
_WHOLE_MODEL = "calibration"


class StoppedError(BaseException):
    """Ends the loading; no `Exception`, for Transformers would note these and load on."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class PackOnArrival:
    """An operation of Transformers' loader.

    Args:
        quantizer: the format that is packed in.
        options: its settings.
        wanted: which layers.
        folder: where what is packed is written, and found again by a load that goes on.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        options: Mapping[str, Any],
        wanted: Wanted,
        folder: PackingFolder | None = None,
    ) -> None:
        if _WHOLE_MODEL in options:
            raise BackendError(
                f"load: {_WHOLE_MODEL!r} runs the whole float model, which never exists while "
                f"backend {quantizer.name!r} packs layer by layer: load it and call quantlora.wrap."
            )
        self.quantizer, self.wanted, self.folder = quantizer, wanted, folder
        self.options = checked_options(quantizer, options)
        self._planned: dict[str, PlannedLayer] = {}
        self._owner: dict[str, str] = {}
        self._others: dict[str, torch.device] = {}

    def prepare(self, model: nn.Module) -> None:
        """Decide what of ``model``, which has no weights yet, is packed."""
        for planned in packing_plan(model, self.quantizer, self.wanted):
            path = planned.path
            self._planned[path] = planned
            names = planned.target.parameters or tuple(planned.layer._parameters)
            self._owner |= {f"{path}.{name}": path for name in names}
        check_patterns(self.options, self._planned.values())
        self._share()

    def _share(self) -> None:
        """Leave to other processes what they pack into the same folder: of each kind in turn."""
        for kind in (True, False):
            paths = [p for p, each in self._planned.items() if bool(each.target.parameters) is kind]
            for index, path in enumerate(paths):
                if self.folder is not None and self.folder.is_shared(index):
                    self._others[path] = torch.device("cpu")

    def wants(self, name: str) -> bool:
        """Whether the parameter of that name is one of a layer that is packed."""
        return name in self._owner

    def convert(
        self,
        input_dict: Mapping[str, Any],
        *,
        model: nn.Module,
        missing_keys: MutableSet[str] | None = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        """Called by Transformers with tensors by name; what is not packed goes back to it."""
        rest = {}
        try:
            for name, value in input_dict.items():
                tensor = value[0] if isinstance(value, list) else value
                if not self.wants(name):
                    rest[name] = tensor
                    continue
                self._arrive(model, name, tensor)
                if missing_keys is not None:
                    missing_keys.discard(name)
        except Exception as error:
            raise StoppedError(error) from error
        return rest

    def convert_experts(
        self,
        name: str,
        experts: Iterator[tuple[str, Tensor]],
        model: nn.Module,
        missing_keys: MutableSet[str] | None,
    ) -> None:
        """The same for a stack whose experts come one after the other, ``(1, ...)`` each."""
        try:
            self._pack_stack(name, experts, model)
        except Exception as error:
            raise StoppedError(error) from error
        if missing_keys is not None:
            missing_keys.discard(name)

    def finish(self, model: nn.Module) -> None:
        """Pack what the checkpoint had not all tensors for; Transformers has filled it by now."""
        for path in [path for path in self._planned if path not in self._others]:
            self._pack(model, path)
        for path in list(self._planned):
            self._take(model, path)

    def _take(self, model: nn.Module, path: str) -> None:
        """What another process packs at ``path``, when it is there."""
        folder, device = cast(PackingFolder, self.folder), self._others[path]
        module, names = model.get_submodule(path), self._planned[path].target.parameters
        if not names:
            layer = folder.wait_for(path).to(device)
            self.quantizer.prepare(layer, path)
            return self._put(model, path, layer)
        stacks = {name: folder.wait_for(f"{path}.{name}").to(device) for name in names}
        layout = experts_layout(module)
        assert layout is not None
        return self._put(model, path, PackedExperts(module, layout, cast(Any, stacks)))

    def _arrive(self, model: nn.Module, name: str, tensor: Tensor) -> None:
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        self._check_shape(name, tensor.shape, module)
        if path in self._others:
            self._others[path] = tensor.device
            return
        module._parameters[own] = nn.Parameter(tensor, requires_grad=False)
        names = self._planned[path].target.parameters
        waited = (own,) if names else tuple(module._parameters)
        values = [module._parameters[name] for name in waited]
        if all(value is None or not value.is_meta for value in values):
            self._pack(model, path, waited if names else ())

    def _pack(self, model: nn.Module, path: str, stacks: tuple[str, ...] = ()) -> None:
        planned, module = self._planned[path], model.get_submodule(path)
        if planned.target.parameters:
            stacks = stacks or planned.target.parameters
            new = self._packed_experts(module, path, stacks)
        else:
            new = self._packed_layer(model, module, path)
        self._put(model, path, new)

    def _put(self, model: nn.Module, path: str, new: nn.Module) -> None:
        """``new`` in the model; nothing of it is drawn anew by Transformers."""
        for part in new.modules():
            cast(Any, part)._is_hf_initialized = True
        for module in parts_of(path, new) if self.folder else ():
            cast(PackingFolder, self.folder).write(module)
        model.set_submodule(path, new)
        give_back()
        names = self._planned[path].target.parameters
        if not names or len(cast(PackedExperts, new).stacks) == len(names):
            del self._planned[path]

    def _check_shape(self, name: str, found: Sequence[int], module: nn.Module) -> None:
        wanted = getattr(module, name.rpartition(".")[2]).shape
        if tuple(found) != tuple(wanted):
            raise BackendError(
                f"{name}: the checkpoint has {tuple(found)}, the model {tuple(wanted)}: is this "
                f"the model's config?"
            )

    def _pack_stack(
        self, name: str, experts: Iterator[tuple[str, Tensor]], model: nn.Module
    ) -> None:
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        layout = experts_layout(module)
        assert layout is not None
        if path in self._others:
            self._others[path] = next(experts)[1].device
            return
        stack = self._found(name, module)
        if stack is None:
            parts = []
            with diagnosed(self.quantizer):
                for _, weight in experts:
                    parts.append(pack_stack(weight, layout, self.quantizer, name, self.options))
                    give_back()
            stack = type(parts[0]).joined(parts)
        self._check_shape(name, layout.own_shape(stack.shape), module)
        self._put(model, path, PackedExperts(module, layout, {own: stack}))

    def _packed_layer(self, model: nn.Module, module: nn.Module, path: str) -> nn.Module:
        linear = as_linear(module)
        found: nn.Module | None = self._found(path, linear)
        if found is not None:
            self.quantizer.prepare(found, path)
            return found
        check_packable(linear, path)
        with diagnosed(self.quantizer):
            layers = self.quantizer.quantize_layers(
                model, {path: linear}, **options_of(self.options, path)
            )
        check_packed(self.quantizer, layers[path], linear.weight.detach(), path)
        self.quantizer.prepare(layers[path], path)
        return layers[path]

    def _packed_experts(self, module: nn.Module, path: str, names: tuple[str, ...]) -> Any:
        layout = experts_layout(module)
        assert layout is not None
        left = [name for name in names if name in module._parameters]
        found = {name: self._found(f"{path}.{name}", module) for name in left}
        if all(stack is not None for stack in found.values()):
            return PackedExperts(module, layout, cast(dict[str, ExpertStack], found))
        with diagnosed(self.quantizer):
            return pack_experts(module, layout, left, self.quantizer, path, self.options)

    def _found(self, path: str, like: nn.Module) -> Any:
        """What an earlier load has packed at ``path``, where the float tensors of ``like`` are."""
        new = None if self.folder is None else self.folder.read(path)
        devices = [tensor.device for tensor in like.parameters() if not tensor.is_meta]
        return new.to(devices[0]) if new is not None and devices else new
