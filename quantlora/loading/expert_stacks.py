"""`set_expert_stack`: experts that a plugin's loader has read packed, put into the model."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from quantlora.errors import ConfigError
from quantlora.experts.packed import PackedExperts
from quantlora.formats.expert_stack import ExpertStack
from quantlora.layers.experts import experts_layout


def set_expert_stack(model: nn.Module, name: str, stack: ExpertStack) -> None:
    """Put ``stack`` in place of the float parameter ``name``; for loaders of plugins.

    The float parameter may be on the meta device. The module of the experts becomes one that
    multiplies with packed stacks, gets adapters and merges as any other.

    Args:
        name: of the parameter in the model: ``model.layers.0.mlp.experts.down_proj``.

    Raises:
        ConfigError: there are no fused experts of a known form, or their shape is another one.
    """
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    layout = experts_layout(module)
    if layout is None or own not in layout.names:
        raise ConfigError(f"{name}: {type(module).__name__} has no such experts.")
    wanted, found = tuple(getattr(module, own).shape), layout.own_shape(stack.shape)
    if wanted != found:
        raise ConfigError(
            f"{name}: the checkpoint has {found}, the model {wanted}: is this the model's config?"
        )
    new = PackedExperts(module, layout, {own: stack})
    for part in new.modules():  # else Transformers draws their values anew
        cast(Any, part)._is_hf_initialized = True
    model.set_submodule(path, new)
