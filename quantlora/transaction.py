"""All or nothing: a failing `wrap` leaves the model as it was."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Any

from torch import nn

from quantlora.layer import LoraLayer


class Transaction:
    """Remembers what a block changes in ``model`` and takes it back if the block fails.

    Within the block, replace modules by `set_module` and add to LoRA layers by `add_adapter`;
    attributes of the model itself and every ``requires_grad`` are watched as they are.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._undo = ExitStack()
        self._undo.callback(self._restore_attributes, dict(vars(model)))
        self._undo.callback(self._restore_flags, [(p, p.requires_grad) for p in model.parameters()])

    def set_module(self, path: str, module: nn.Module) -> None:
        self._undo.callback(self.model.set_submodule, path, self.model.get_submodule(path))
        self.model.set_submodule(path, module)

    def add_adapter(self, layer: LoraLayer, name: str, *args: Any) -> None:
        base, active = layer.base_layer, layer.active
        layer.add_adapter(name, *args)
        self._undo.callback(_restore_layer, layer, name, base, active)

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._undo.pop_all()
        else:
            self._undo.close()

    def _restore_attributes(self, before: dict[str, Any]) -> None:
        for name in set(vars(self.model)) - set(before):
            del vars(self.model)[name]
        vars(self.model).update(before)

    @staticmethod
    def _restore_flags(flags: list[tuple[nn.Parameter, bool]]) -> None:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _restore_layer(layer: LoraLayer, name: str, base: nn.Module, active: tuple[str, ...]) -> None:
    layer.remove_adapter(name)
    layer.base_layer, layer.active = base, active
