"""``model(**batch, adapter_names=[...])``: a mixed batch by keyword, as PEFT's models take it.

A pair of hooks on the model: the one before takes the keyword away, so the model's own forward
never sees it; the one after runs also where forward fails. Both are plain functions, so a copied
or pickled model keeps them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from quantlora.adapters.mixed_batch import assign_samples, restore_samples
from quantlora.adapters.rows_by_mask import check_media
from quantlora.layers.calls import calls, mark, may_be_marked, unmark

_KEYWORD = "adapter_names"


def accept_adapter_names(model: nn.Module) -> None:
    """Let ``model`` take the keyword; once is enough."""
    if _before not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_before, prepend=True, with_kwargs=True)
        model.register_forward_hook(_after, with_kwargs=True, always_call=True)


def refuse_adapter_names(model: nn.Module) -> None:
    """Take the hooks away."""
    hooks = {**model._forward_pre_hooks, **model._forward_hooks}
    for key in [key for key, hook in hooks.items() if hook in (_before, _after)]:
        for hooks_of_kind in (
            model._forward_pre_hooks,
            model._forward_pre_hooks_with_kwargs,
            model._forward_hooks,
            model._forward_hooks_with_kwargs,
            model._forward_hooks_always_called,
        ):
            hooks_of_kind.pop(key, None)


def _before(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    names = kwargs.pop(_KEYWORD, None)
    if names is not None:
        _begin(model, names)
    if not torch.compiler.is_compiling() and calls().samples:
        check_media(model, args, kwargs)
    return None if names is None else (args, kwargs)


def _after(model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    if may_be_marked(model):
        _end(model)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _begin(model: nn.Module, names: Any) -> None:
    """What a thread keeps for itself is no part of a graph."""
    mark(model, assign_samples(model, names))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _end(model: nn.Module) -> None:
    if (before := unmark(model)) is not None:
        restore_samples(model, before)
