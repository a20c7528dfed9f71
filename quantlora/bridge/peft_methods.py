"""The methods that a ``peft.PeftModel`` has beside Transformers' own, under PEFT's names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from quantlora.adapters.disabling import adapters_disabled
from quantlora.adapters.parameter_counts import parameter_counts
from quantlora.adapters.switch import remove_adapters
from quantlora.bridge.adapter_method import detach
from quantlora.combining.combination import add_weighted_adapter
from quantlora.merging.merge import merge, merge_and_remove, unmerge
from quantlora.merging.merge_report import MergeReport


def print_trainable_parameters(model: nn.Module) -> None:
    """Print how many parameters are trained, in PEFT's words."""
    trained, every = parameter_counts(model)
    share = 100 * trained / every if every else 0.0
    print(f"trainable params: {trained:,d} || all params: {every:,d} || trainable%: {share:.4f}")


def _merge_adapter(
    model: nn.Module,
    adapter_names: Sequence[str] | None = None,
    safe_merge: bool = True,
    *,
    mode: str = "requantize",
) -> MergeReport:
    """`quantlora.merge`; a merge is always checked for NaN, whatever ``safe_merge`` says."""
    return merge(model, adapter_names, mode=mode)


def _merge_and_unload(
    model: nn.Module,
    progressbar: bool = False,
    safe_merge: bool = True,
    adapter_names: Sequence[str] | None = None,
    *,
    mode: str = "requantize",
) -> nn.Module:
    """`quantlora.merge_and_unload`; checked for NaN always, and without a progress bar."""
    merge_and_remove(model, adapter_names, mode=mode)
    detach(model)
    return model


def _unload(model: nn.Module) -> nn.Module:
    """Remove every adapter: the plain model, the same object."""
    remove_adapters(model)
    detach(model)
    return model


def _disable_adapter(model: nn.Module) -> AbstractContextManager[None]:
    """Without adapters within the block."""
    return adapters_disabled(model)


def _get_base_model(model: nn.Module) -> nn.Module:
    """The model itself: adapters sit in it, nothing is around it."""
    return model


#: By the names PEFT has for them.
PEFT_METHODS: dict[str, Callable[..., Any]] = {
    "print_trainable_parameters": print_trainable_parameters,
    "get_nb_trainable_parameters": parameter_counts,
    "merge_adapter": _merge_adapter,
    "unmerge_adapter": unmerge,
    "merge_and_unload": _merge_and_unload,
    "unload": _unload,
    "disable_adapter": _disable_adapter,
    "add_weighted_adapter": add_weighted_adapter,
    "get_base_model": _get_base_model,
}
