"""A module with other tensors, without touching it: several threads may call it at once.

`torch.func.functional_call` puts the tensors into the module for as long as the call runs, where
every other thread sees them. A twin shares all else with the original: submodules, buffers, hooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MethodType
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

#: What `nn.Module` keeps its tensors in, and what is the twin's own.
_TABLES = ("_parameters", "_buffers", "_modules")


def twin(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """``module`` with ``tensors`` in place of its own parameters and buffers of those names.

    A parameter that it has under a second name is replaced there too. Parametrized attributes
    become plain ones. Methods that were put on the instance are the twin's.
    """
    packed = {name: tensors.get(name, getattr(module, name)) for name in parametrized(module)}
    kind = parametrize.type_before_parametrizations(module) if packed else type(module)
    new: nn.Module = object.__new__(kind)
    vars(new).update({name: _rebound(value, module, new) for name, value in vars(module).items()})
    new._parameters = cast("dict[str, nn.Parameter | None]", _replaced(module._parameters, tensors))
    if any(name in module._buffers for name in tensors):
        new._buffers = _replaced(module._buffers, tensors)
    if packed:
        new._modules = {k: child for k, child in module._modules.items() if k != "parametrizations"}
        vars(new).update(packed)
    return new


def parametrized(module: nn.Module) -> tuple[str, ...]:
    """Names of the attributes that are computed (`torch.nn.utils.parametrize`)."""
    if not parametrize.is_parametrized(module):
        return ()
    return tuple(cast(nn.ModuleDict, module.parametrizations))


def call_twin(module: nn.Module, tensors: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """``module(*args, **kwargs)`` with ``tensors``; attributes that its forward sets are kept."""
    new = twin(module, tensors)
    before = dict(vars(new))
    output = new(*args, **kwargs)
    for name, value in vars(new).items():
        if name not in _TABLES and value is not before.get(name, _TABLES):
            vars(module)[name] = value
    return output


def _replaced(
    by_name: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor | None]:
    by_id = {id(by_name[name]): tensor for name, tensor in tensors.items() if name in by_name}
    return {name: by_id.get(id(tensor), tensor) for name, tensor in by_name.items()}


def _rebound(value: Any, old: nn.Module, new: nn.Module) -> Any:
    """A bound method or a partial of ``old`` (accelerate's ``forward``) as one of ``new``."""
    if isinstance(value, MethodType) and value.__self__ is old:
        return MethodType(value.__func__, new)
    if isinstance(value, partial) and any(argument is old for argument in value.args):
        arguments = [new if argument is old else argument for argument in value.args]
        bound = partial(value.func, *arguments, **value.keywords)
        vars(bound).update(vars(value))
        return bound
    return value
