"""All or nothing: a failing `wrap` leaves the model as it was."""

from __future__ import annotations

from types import TracebackType

from torch import nn


class Transaction:
    """Remembers ``model`` and puts it back if the block fails, by an error or by Ctrl-C.

    Watched is what every module holds (attributes, submodules, parameters, buffers, hooks; the
    contents of its lists and dicts) and every ``requires_grad``. The values inside tensors are
    not: nobody may change them within the block.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [_Memory(module) for module in model.modules()]
        self._flags = [(p, p.requires_grad) for p in model.parameters()]

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            return
        for module in self._modules:
            module.restore()
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)


class _Memory:
    """What one module held; containers keep their identity, others may have a reference."""

    def __init__(self, module: nn.Module) -> None:
        self.attributes = vars(module)
        self.before = dict(self.attributes)
        held = self.before.values()
        self.dicts = [(one, dict(one)) for one in held if isinstance(one, dict)]
        self.lists = [(one, list(one)) for one in held if isinstance(one, list)]

    def restore(self) -> None:
        for container, content in (*self.dicts, (self.attributes, self.before)):
            container.clear()
            container.update(content)
        for items, kept in self.lists:
            items[:] = kept
