"""All or nothing: a failing `wrap` leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any

from torch import nn

from quantlora.adapters.adapter_modules import (
    adapter_containers,
    frozen_modules,
    modules_of_adapter,
    modules_of_container,
)
from quantlora.adapters.disabling import maybe_trained
from quantlora.adapters.state import AdapterState, adapter_state, has_adapters
from quantlora.layers.adapter_module import AdapterModule

#: The transaction that each model is within now, by the model's id.
_open: ContextVar[dict[int, Transaction]] = ContextVar("open")


class Transaction:
    """Remembers ``model`` and puts it back if the block fails, by an error or by Ctrl-C.

    Watched is what every module holds (attributes, submodules, parameters, buffers, hooks; the
    contents of its lists and dicts) and every ``requires_grad``. The values inside tensors are
    not: nobody may change them within the block.

    One within another on the same model adds nothing: the outer one puts all of it back.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __enter__(self) -> Transaction:
        open_models = _open.get({})
        self._undo: list[Callable[[], object]] = []
        self._modules: list[_Memory] = []
        self._adapters: list[tuple[nn.Module, bool]] = []
        self._flags: list[tuple[nn.Parameter, bool]] = []
        self._outer = open_models.get(id(self._model))
        if self._outer is None:
            self._remember()
        self._token: Token[dict[int, Transaction]] = _open.set(
            {**open_models, id(self._model): self._outer or self}
        )
        return self

    def if_it_fails(self, undo: Callable[[], object]) -> None:
        """Call ``undo`` where the block fails, before the model is put back; the last one first.

        For what was done elsewhere than in the model. It must not raise.
        """
        (self._outer or self)._undo.append(undo)

    def _remember(self) -> None:
        """All of the model, but of a module within an adapter what training and `eval` set.

        There may be hundreds of adapters, and each further one comes by here: those that are
        neither active nor trained are as `_put_others_back` says.
        """
        full = [module for _, module in frozen_modules(self._model)]
        containers = [container for module in full for container in adapter_containers(module)]
        state = adapter_state(self._model) if has_adapters(self._model) else AdapterState()
        names = maybe_trained(state, (m for m in full if isinstance(m, AdapterModule)))
        within = [part for m in full for name in names for part in modules_of_adapter(m, name)]
        self._modules = [_Memory(module) for module in (*full, *containers)]
        self._adapters = [(module, module.training) for module in within]
        self._flags = [
            (parameter, parameter.requires_grad)
            for module in (*full, *containers, *within)
            for parameter in module._parameters.values()
            if parameter is not None
        ]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _open.reset(self._token)
        if kind is None:
            return
        for undo in reversed(self._undo):
            undo()
        for memory in self._modules:
            memory.restore()
        self._put_others_back()
        for module, training in self._adapters:
            module.training = training
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)

    def _put_others_back(self) -> None:
        """The other adapters needed no gradient, and were in the mode of their layer."""
        for _, module in frozen_modules(self._model):
            for container in adapter_containers(module):
                for part in (container, *modules_of_container(container)):
                    part.training = module.training
                    for parameter in part._parameters.values():
                        if parameter is not None:
                            parameter.requires_grad_(False)


class _Memory:
    """What one module held; containers keep their identity, others may have a reference.

    Most of a module's containers are empty, and these are not copied.
    """

    __slots__ = ("attributes", "before", "filled")

    def __init__(self, module: nn.Module) -> None:
        self.attributes = vars(module)
        self.before = self.attributes.copy()
        self.filled: dict[int, Any] = {
            id(value): dict(value) if isinstance(value, dict) else list(value)
            for value in self.before.values()
            if isinstance(value, (dict, list)) and value
        }

    def restore(self) -> None:
        for value in self.before.values():
            if isinstance(value, dict):
                _refill(value, self.filled.get(id(value), {}))
            elif isinstance(value, list):
                value[:] = self.filled.get(id(value), ())
        _refill(self.attributes, self.before)


def _refill(container: dict[Any, Any], content: dict[Any, Any]) -> None:
    container.clear()
    container.update(content)
