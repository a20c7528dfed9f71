"""`ModulesToSaveWrapper`: a module trained in full with an adapter (``modules_to_save``).

It holds the original and one trained copy for each adapter, under PEFT's names, and answers for
the one that counts; copies cannot be summed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from quantlora.errors import AdapterError
from quantlora.layers.adapter_module import AdapterModule
from quantlora.layers.sub_batch import pick_samples, put_samples, sub_batches

#: Arguments that a call does not change.
_CONTAINERS = (tuple, list, dict)
_VALUES = (*_CONTAINERS, Tensor, int, float, complex, str, type(None), torch.dtype, torch.device)


class ModulesToSaveWrapper(AdapterModule):
    """``original_module``, and by adapter name its trained copies in ``modules_to_save``."""

    changes_itself = True  # statistics of a batch norm, rows that max_norm shortens

    def __init__(self, original: nn.Module, path: str) -> None:
        super().__init__(path)
        self.original_module = original
        self.modules_to_save = nn.ModuleDict()
        self.train(original.training)

    def __getattr__(self, name: str) -> Any:
        """What is not ours is the module's own: Transformers asks embeddings for their weight."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("original_module", "modules_to_save"):  # while it is made or unpickled
                raise
            return getattr(self.chosen, name)

    @property
    def plain(self) -> nn.Module:
        """What stays when the adapters go: the original, or the copy that is merged."""
        return (
            self.modules_to_save[self.merged_adapters[0]]
            if self.merged_adapters
            else self.original_module
        )

    @property
    def chosen(self) -> nn.Module:
        """The active adapter's copy, or the original."""
        active = self.standing.active if self.enabled else ()
        return self.modules_to_save[active[0]] if active else self.plain

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.sample_adapters is None or not self.enabled:
            return self.chosen(*args, **kwargs)
        samples = self.sample_adapters
        if len(names := {*samples}) == 1 and names <= {*self.adapters}:
            return self.modules_to_save[names.pop()](*args, **kwargs)
        if not names & {*self.adapters}:
            return self.original_module(*args, **kwargs)
        return self._by_sample(samples, args, kwargs)

    def _by_sample(
        self, samples: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The original's output, with the samples of each adapter from its copy."""
        self._check_arguments(args, kwargs)
        y = self.original_module(*args, **kwargs)
        given = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
        if not given:
            return y
        for name, rows in sub_batches(samples, self.adapters, given[0], self.path):
            copy = self.modules_to_save[name]
            if len(args) == 1 and not kwargs and isinstance(y, Tensor):
                y = y.index_copy(0, rows, copy(pick_samples(args[0], rows)).to(y.dtype))
            else:  # what else there is may belong to the samples or not: give all of it
                y = put_samples(y, rows, copy(*args, **kwargs), len(given[0]), self.path)
        return y

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse what a call may write to: the copies would all write to the same."""
        found = tree_leaves(
            (args, kwargs), is_leaf=lambda value: not isinstance(value, _CONTAINERS)
        )
        if shared := next((value for value in found if not isinstance(value, _VALUES)), None):
            raise AdapterError(
                f"{self.path}: this module is trained in full (modules_to_save) and is given a "
                f"{type(shared).__name__}, to which the copies of all adapters in the batch would "
                f"write: use_cache=False, or call the model for each adapter by itself."
            )

    def tied_output(self, head: nn.Module, x: Tensor) -> Tensor:
        """What ``head``, which has this embedding's weight, computes with the trained copies."""
        bias = getattr(head, "bias", None)
        if self.sample_adapters is None or not self.enabled:
            return F.linear(x, _weight(self.chosen), bias)
        y = F.linear(x, _weight(self.original_module), bias)
        for name, rows in sub_batches(self.sample_adapters, self.adapters, x, self.path):
            trained = F.linear(pick_samples(x, rows), _weight(self.modules_to_save[name]), bias)
            y = y.index_copy(0, rows, trained.to(y.dtype))
        return y

    def tied_tensors(self, name: str, value: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The copy once more, as PEFT has it in its file for the head."""
        return {"weight": value(_weight(self.modules_to_save[name]))}

    # -- adapters

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self.modules_to_save)

    def by_name(self) -> dict[str, Any]:
        return {"modules_to_save": self.modules_to_save}

    def add_adapter(self, name: str, copy: nn.Module) -> None:
        self.modules_to_save[name] = copy

    def adapter_tensors(self, name: str) -> dict[str, Tensor]:
        """The copy's parameters and buffers by their name in an adapter file: ``weight``."""
        tensors: dict[str, Tensor] = self.modules_to_save[name].state_dict(keep_vars=True)
        return tensors


def _weight(module: nn.Module) -> Tensor:
    return cast(Tensor, module.weight)
