"""Layers that are one expert of a mixture: they get some of the tokens, of no sample in particular.

Fused experts are told the routing and can say whose token is whose (`quantlora.layers.experts`). A
layer by itself sees rows only, and may get as many of them as there are samples.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.adapter_modules import frozen_modules
from quantlora.errors import AdapterError

_LISTS = (nn.ModuleList, nn.ModuleDict)


def check_no_experts(adapted: AdaptedModel, names: Collection[str]) -> None:
    """Raise `AdapterError` where one of the adapters ``names`` is on such a layer."""
    with_them = [
        p for p, module in adapted.adapter_modules.items() if {*names} & {*module.adapters}
    ]
    lists = _expert_lists(adapted.model) if with_them else ()
    for path in with_them:
        if any(path.startswith(f"{prefix}.") for prefix in lists):
            raise AdapterError(
                f"{path}: this layer is one expert of a mixture, whose tokens are of no sample in "
                f"particular, so it cannot be in a mixed batch: call the model for each adapter by "
                f"itself, or leave the experts out (exclude_modules)."
            )


def _expert_lists(model: nn.Module) -> list[str]:
    """Paths of the lists of experts: such by name, or with a router beside them."""
    return [
        f"{path}.{name}" if path else name
        for path, module in frozen_modules(model)
        for name, child in module._modules.items()
        if isinstance(child, _LISTS) and (_is_named_so(name) or _is_routed(module, child))
    ]


def _is_named_so(name: str) -> bool:
    return name.endswith("experts") and "shared" not in name


def _is_routed(owner: nn.Module, experts: nn.Module) -> bool:
    """Whether ``owner`` has a gate with one output for each of ``experts``."""
    size = len(experts._modules)
    return size > 1 and any(
        parameter.ndim == 2 and len(parameter) == size
        for name, child in owner._modules.items()
        if child is not None and child is not experts and ("gate" in name or "router" in name)
        for parameter in child.parameters()
    )
