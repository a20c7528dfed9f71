"""`AdaptedModel`: a model as one operation sees it, gone over once at its door and handed on."""

from __future__ import annotations

from torch import nn

from quantlora.adapters.adapter_modules import OURS, frozen_modules
from quantlora.adapters.modules_to_save import ModulesToSaveWrapper
from quantlora.adapters.state import AdapterState, adapter_state, has_adapters
from quantlora.layers.adapter_module import AdapterModule
from quantlora.layers.layer import LoraLayer
from quantlora.layers.tied import TiedLayer


class AdaptedModel:
    """The modules of ``model`` by path, those with adapters among them, and its adapters' state.

    It does not follow later changes: an operation that puts modules in place makes another one.

    Args:
        modules: all modules, also under a second path; what is inside one of ours is left out.
        adapter_modules: all that holds adapters, each once, also inside another one.
        tied_layers: those that follow the adapters of another one, each once.
        state: its adapters; an empty one where it was never wrapped.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.state = adapter_state(model) if has_adapters(model) else AdapterState()
        self.modules: dict[str, nn.Module] = {}
        self.adapter_modules: dict[str, AdapterModule] = {}
        self.tied_layers: dict[str, TiedLayer] = {}
        seen: set[int] = set()
        inside = None
        for path, module in frozen_modules(model, repeat=True):
            if inside is None or not path.startswith(inside):
                self.modules[path] = module
                inside = f"{path}." if isinstance(module, OURS) else None
            if id(module) not in seen and isinstance(module, AdapterModule):
                self.adapter_modules[path] = module
            elif id(module) not in seen and isinstance(module, TiedLayer):
                self.tied_layers[path] = module
            seen.add(id(module))

    @classmethod
    def of(cls, model: nn.Module) -> AdaptedModel:
        """The same for a model with adapters; an `AdapterError` where it was never wrapped."""
        adapter_state(model)
        return cls(model)

    @property
    def lora_layers(self) -> dict[str, LoraLayer]:
        """The LoRA layers by path."""
        return {
            p: module for p, module in self.adapter_modules.items() if isinstance(module, LoraLayer)
        }

    @property
    def saved_modules(self) -> dict[str, ModulesToSaveWrapper]:
        """The modules that adapters train in full, by path."""
        every = self.adapter_modules.items()
        return {path: module for path, module in every if isinstance(module, ModulesToSaveWrapper)}

    @property
    def merged(self) -> set[str]:
        """Names of the adapters that are merged somewhere."""
        return {n for module in self.adapter_modules.values() for n in module.merged_adapters}
