"""Gradient checkpointing: what is computed again in backward is computed with the same adapters.

`torch.utils.checkpoint` calls its function once more during backward. By then other adapters may be
active, or none, or a mixed batch may be over: the gradient would be that of another model, without
a word. So the first call notes how each module with adapters stands, and the later ones find it so.
What cannot be had again (an adapter that is deleted or merged) is an error.

torch has no hook for this, so its two kinds of checkpoint are taught here. Checkpoints of other
libraries know nothing of it.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakSet

import torch
import torch.utils.checkpoint as torch_checkpoint
from torch import Tensor

from quantlora.errors import AdapterError
from quantlora.layers.calls import calls, store
from quantlora.layers.noted import Noted, Notes, Standing
from quantlora.layers.recorded import stop_training
from quantlora.layers.trained_bias import TrainedBias

#: Modules that are in a compiled graph, whose calls nobody sees.
_TRACED: WeakSet[Any] = WeakSet()
_NUMBERS = itertools.count()
#: The modules of torch that have the checkpoint without re-entry under its name.
_USERS = ("torch.utils.checkpoint", "torch.distributed._composable.checkpoint_activation")


def next_number() -> int:
    """Numbers for what is made: modules with adapters and calls, in the order of time."""
    return next(_NUMBERS)


class CheckpointedCall(Notes):
    """One call of a checkpointed function, and which adapters counted in it."""

    def __init__(self) -> None:
        super().__init__(next_number())
        self.begun = False
        self.calls = calls()
        self.traced: list[tuple[Any, tuple[Any, ...]]] = []
        self.biases = _placed_biases()

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Within the block the modules that are called are noted."""
        self.begun, before = True, calls()
        store(replace(before, noting=(*before.noting, self)))
        try:
            yield
        finally:
            store(replace(calls(), noting=before.noting))
            self.traced = [(module, module.traced_standing()) for module in _TRACED]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Within the block the same adapters are active as in the first call.

        Raises:
            AdapterError: they cannot.
        """
        self._check()
        now = calls()
        with ExitStack() as stack:
            stack.callback(store, now)
            store(replace(self.calls, marked=now.marked, noting=(), again=self))
            for bias, placed in self._changed_biases():
                stack.callback(bias.restore if placed else bias.install)
                bias.install() if placed else bias.restore()
            for tensor, trained in self._tensors():
                if tensor.requires_grad != trained and tensor.is_leaf:
                    stack.callback(_train, tensor, not trained)
                    tensor.requires_grad_(trained)
            yield

    def _check(self) -> None:
        for noted in self.noted.values():
            if change := noted.change():
                raise AdapterError(_refusal(noted.module.path, change))
        for module, standing in self.traced:
            if module.traced_standing() != standing:
                raise AdapterError(
                    _refusal(module.path, "a compiled graph it is in was switched to others")
                )

    def _tensors(self) -> list[tuple[Tensor, bool]]:
        tensors = itertools.chain.from_iterable(noted.tensors() for noted in self.noted.values())
        return [*tensors, *((bias.parameter, trained) for bias, trained in self.biases)]

    def _changed_biases(self) -> list[tuple[TrainedBias, bool]]:
        """Those that were in place and are not (True), and those that were not and are."""
        then = {id(bias) for bias, _ in self.biases}
        back = [(bias, True) for bias, _ in self.biases if not bias.placed]
        return [(bias, False) for bias, _ in _placed_biases() if id(bias) not in then] + back


def _placed_biases() -> list[tuple[TrainedBias, bool]]:
    return [(bias, bias.parameter.requires_grad) for bias in TrainedBias.alive if bias.placed]


def _train(tensor: Tensor, trained: bool) -> None:
    tensor.requires_grad_(True) if trained else stop_training(tensor)


def standing(module: Any) -> Standing:
    """How ``module`` stands; in what this thread computes again, as it stood the first time."""
    now = calls()
    stands = Standing(module.active, module.enabled_for_all)
    if now.again is not None:
        stands = _as_then(now.again, module, stands)
    for call in now.noting:
        noted = call.noted.get(id(module))
        if noted is None:
            noted = call.noted[id(module)] = Noted(module, stands, module.merged_adapters)
        samples = now.samples.get(id(module), stands.active)
        if stands.enabled and id(module) not in now.off:
            noted.count(samples)
    return stands


def _as_then(call: Notes, module: Any, stands: Standing) -> Standing:
    if id(module) in call.noted:
        return call.noted[id(module)].standing
    if module.number > call.number:
        raise AdapterError(_refusal(module.path, "adapters were put on it"))
    return stands


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def note_traced(module: Any) -> bool:
    """``module`` is being traced into a graph: called then, and not when the graph runs."""
    _TRACED.add(module)
    return True


def _refusal(path: str, change: str) -> str:
    return (
        f"{path}: gradient checkpointing computes this again in backward, and since forward "
        f"{change}: call backward before, or turn gradient checkpointing off."
    )


def follow_checkpoints() -> None:
    """Let `torch.utils.checkpoint` compute again with the adapters of the first time; once."""
    reentrant: Any = torch_checkpoint.CheckpointFunction
    if hasattr(reentrant.forward, "__wrapped__"):
        return
    reentrant.forward = staticmethod(_reentrant(reentrant.forward))
    other = torch_checkpoint._checkpoint_without_reentrant_generator
    for name in _USERS:
        if name in sys.modules:
            vars(sys.modules[name])[other.__name__] = _without_reentrant(other)


def _reentrant(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def forward(ctx: Any, function: Callable[..., Any], *args: Any) -> Any:
        call = CheckpointedCall()

        def run(*inputs: Any) -> Any:
            with call.again() if call.begun else call.noting():
                return function(*inputs)

        return original(ctx, run, *args)

    return forward


def _without_reentrant(original: Callable[..., Any]) -> Callable[..., Any]:
    """torch calls the function itself the first time, between two steps of its generator."""

    @functools.wraps(original)
    def generator(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Iterator[None]:
        call = CheckpointedCall()

        def run(*inputs: Any, **keywords: Any) -> Any:
            with call.again():
                return function(*inputs, **keywords)

        with call.noting():
            yield from original(run, *args, **kwargs)

    return generator
