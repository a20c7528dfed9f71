"""The hooks of a layer go with its place: to the LoRA layer, and back to the plain one.

They belong to what the model calls. Moved are torch's own tables, not copies, so that the handles
that `register_forward_hook` and its like have returned still remove theirs.
"""

from __future__ import annotations

from torch import nn

from quantlora.formats.around import computing_hooks

#: Hooks around a call, with their companions (``with_kwargs``, ``always_call``).
_CALL = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
#: Hooks around a state dict: they are about the layer's own tensors and stay with the base.
_STATE = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_FULL = "_is_full_backward_hook"


def move_hooks(old: nn.Module, new: nn.Module) -> None:
    """What was to happen around calls of ``old`` happens around those of ``new``.

    Hooks that compute the weight of ``old`` stay with it.
    """
    staying = computing_hooks(old)
    for name in _CALL:
        hooks, added = vars(old)[name], vars(new)[name]
        hooks.update(added)
        vars(old)[name], vars(new)[name] = type(hooks)(), hooks
    for number in staying:
        old._forward_pre_hooks[number] = new._forward_pre_hooks.pop(number)
    if vars(old).get(_FULL) is not None:
        vars(new)[_FULL] = vars(old)[_FULL]
        vars(old)[_FULL] = None


def add_state_hooks(old: nn.Module, new: nn.Module) -> None:
    """The state dict of ``new``, made in place of ``old``, has the hooks of that of ``old`` too."""
    for name in _STATE:
        vars(new)[name].update(vars(old)[name])
