"""Which gradient was the first, in backward, not to be finite; where the forward went wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quantlora.training.causal_lm_loss import take_last_loss


class GradientWatch:
    """Notes of each gradient, in the order of backward, whether it is finite.

    The notes stay on the device until they are asked for: a step costs one read, not one for each
    parameter.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._notes: list[tuple[str, Tensor]] = []
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._note, path))  # type: ignore[no-untyped-call]
            for path, parameter in model.named_parameters()
            if parameter.requires_grad
        ]

    def _note(self, path: str, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._notes.append((path, _spoilt(parameter.grad)))

    def first(self) -> str | None:
        """Path of the first parameter whose gradient was not finite since the last call."""
        notes, self._notes = self._notes or list(self._read()), []
        if not notes:
            return None
        flags = torch.stack([flag for _, flag in notes]).tolist()
        return next((path for (path, _), bad in zip(notes, flags, strict=True) if bad), None)

    def _read(self) -> Iterator[tuple[str, Tensor]]:
        """The gradients as they are: for engines that write them without calling the hooks."""
        for path, parameter in self.model.named_parameters():
            if parameter.requires_grad and parameter.grad is not None:
                yield path, _spoilt(parameter.grad)

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


class BatchWatch:
    """Keeps the batches of one step, and the loss of the last: to look again where it is NaN."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._loss: Tensor | None = None
        self._batches: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = []
        self._hook = model.register_forward_hook(self._note, with_kwargs=True)

    def _note(self, model: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
        if model.training:
            self._batches.append((args, kwargs))
            loss = getattr(output, "loss", None)
            take_last_loss(model)  # of an earlier forward
            self._loss = loss.detach() if isinstance(loss, Tensor) else None

    @property
    def loss(self) -> Tensor | None:
        """The model's own, or that of `causal_lm_loss`, which comes after its forward."""
        if self._loss is None:
            self._loss = take_last_loss(self.model)
        return self._loss

    def forget(self) -> None:
        self._batches.clear()

    def first_module(self) -> str | None:
        """Path of the first module whose output is not finite, running the step's batches again.

        None where all outputs are finite, or where a forward needs the other processes.
        """
        if any(_is_shared_out(parameter) for parameter in self.model.parameters()):
            return None
        batches, self._batches = self._batches, []
        found = (_first_module(self.model, *batch) for batch in batches)
        return next((path for path in found if path is not None), None)

    def close(self) -> None:
        self._hook.remove()


def _first_module(model: nn.Module, args: Any, kwargs: Any) -> str | None:
    try:
        with torch.no_grad(), _stopping(model):
            model(*args, **kwargs)
    except _Found as found:
        return found.path
    return None


class _Found(Exception):  # noqa: N818
    """Ends a forward at the module that was looked for."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


@contextmanager
def _stopping(model: nn.Module) -> Iterator[None]:
    """Within the block a forward raises `_Found` at the first output that is not finite."""

    def check(path: str, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and bool(_spoilt(output)):
            raise _Found(path)

    hooks = [
        module.register_forward_hook(partial(check, path))
        for path, module in model.named_modules()
        if path
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _spoilt(tensor: Tensor) -> Tensor:
    """Whether something in ``tensor`` is NaN or infinite, as a tensor of its own."""
    whole: Any = tensor
    local = whole.to_local() if _is_shared_out(tensor) else whole
    spoilt: Tensor = torch.isfinite(local).all().logical_not()
    return spoilt


def _is_shared_out(tensor: Tensor) -> bool:
    """Whether other processes hold parts of it (FSDP2's DTensor)."""
    return hasattr(tensor, "to_local")
