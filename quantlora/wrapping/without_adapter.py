"""Fused experts and their like that get no adapter: named, with their share of the model.

Since Transformers 5 the experts of a mixture are parameters of three dimensions, no layers, and
they are most of its weights. What leaves them out must not do so silently: a mixture "in 4 bits"
whose experts stay in 16 takes four times the memory, and one without adapters there trains less.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.adapter_modules import OURS
from quantlora.discovery.registration import registry
from quantlora.layers.experts import experts_layout
from quantlora.names import plain_path
from quantlora.units import dtype_name
from quantlora.wrapping.expert_targets import why_no_experts
from quantlora.wrapping.target import Target
from quantlora.wrapping.targets import Search

#: What names a class of experts; a router or a gate beside them is left out on purpose.
_EXPERTS = "expert"
#: Other stacked matrices are named from this share of the model on.
_LEAST = 0.01
#: Parameters of three dimensions that are no stacks of matrices.
_OTHERS = (nn.modules.conv._ConvNd, nn.Bilinear)


@dataclass(frozen=True)
class WithoutAdapter:
    """The stacked matrices of one module that get no adapter.

    Args:
        path: the module's place.
        kind: its class.
        names: its parameters.
        share: the part of the model's parameters that they are.
        dtype: what they are stored in.
    """

    path: str
    kind: str
    names: tuple[str, ...]
    share: float
    dtype: torch.dtype

    @property
    def reason(self) -> str:
        """For a row of `explain`."""
        return f"{', '.join(self.names)}: {self.share:.1%} of the parameters, no linear layers"


def expert_notices(
    search: Search, targets: Iterable[Target], floats: Iterable[Target], packed: bool
) -> list[str]:
    """What to say of experts without adapter, and of those that stay float among packed layers.

    Args:
        floats: those of ``targets`` that are float, and stay so.
        packed: whether others are packed.
    """
    found, config = [], search.config
    if packed or (search.names.all_linear and config.target_experts):
        found.append(says_left(without_adapter(search, targets), why_no_experts(config)))
    if packed:
        found.append(says_float(search.adapted, [target for target in floats if target.parameters]))
    return found


def without_adapter(search: Search, targets: Iterable[Target]) -> list[WithoutAdapter]:
    """The modules whose stacked matrices are not all among ``targets``, in the model's order.

    What ``exclude_modules`` or ``modules_to_save`` names is left out on purpose.
    """
    total = sum(p.numel() for p in search.adapted.model.parameters()) or 1
    allow = search.names.allow
    taken = {target.path: target.parameters for target in targets}
    found = []
    for path, module in search.modules.items():
        stacked = {} if isinstance(module, OURS) else stacked_matrices(module)
        free = (k for k in stacked if allow(f"{plain_path(path)}.{k}"))
        left = {k: stacked[k] for k in free if k not in taken.get(path, ())}
        share = sum(tensor.numel() for tensor in left.values()) / total
        if left and allow(plain_path(path)) and (_of_experts(module) or share >= _LEAST):
            dtype = next(iter(left.values())).dtype
            found.append(WithoutAdapter(path, type(module).__name__, tuple(left), share, dtype))
    return found


def stacked_matrices(module: nn.Module) -> dict[str, Tensor]:
    """Its own parameters that hold many matrices: ``(experts, out, in)``, or 2-D among experts."""
    if isinstance(module, _OTHERS):
        return {}
    least = 2 if _of_experts(module) else 3
    return {
        name: parameter
        for name, parameter in module._parameters.items()
        if parameter is not None
        and parameter.dim() in (least, 3)
        and len(parameter) > 1
        and not name.endswith("bias")
    }


def _of_experts(module: nn.Module) -> bool:
    return _EXPERTS in type(module).__name__.lower()


def says_left(left: Iterable[WithoutAdapter], why: str = "") -> str:
    """One sentence about all of them; empty where there are none.

    Args:
        why: what of the config is not for them, if that is the reason.
    """
    left = list(left)
    if not left:
        return ""
    first = left[0]
    share = sum(layer.share for layer in left)
    more = f" and {len(left) - 1} more" if len(left) > 1 else ""
    dtypes = dict.fromkeys(dtype_name(layer.dtype) for layer in left)
    return (
        f"{first.path}{more} ({', '.join(dict.fromkeys(layer.kind for layer in left))}) hold "
        f"{share:.0%} of the model's parameters in {', '.join(_names(left))}, which are no layers: "
        f"they stay as they are ({', '.join(dtypes)}) and get no adapter, "
        f"{_remedy(left, why)}."
    )


def _remedy(left: Iterable[WithoutAdapter], why: str) -> str:
    if why:
        return f"for they cannot have {why}; leave them out by exclude_modules"
    return f"unless they are named: target_parameters={ends(left)}"


def says_float(adapted: AdaptedModel, targets: Iterable[Target]) -> str:
    """What to say of adapted experts that no format packs; empty where there are none."""
    stacks = {
        f"{target.path}.{name}": target.layer._parameters.get(name)
        for target in targets
        for name in target.parameters
        if experts_layout(target.layer) is not None
    }
    numbers = sum(tensor.numel() for tensor in stacks.values() if tensor is not None)
    if not numbers:
        return ""
    total = sum(parameter.numel() for parameter in adapted.model.parameters())
    able = [
        quantizer.name
        for quantizer in registry().quantizers.values()
        if quantizer.can_quantize_experts
    ]
    return (
        f"{next(iter(stacks))} and {len(stacks) - 1} more stacks of experts get adapters and stay "
        f"float among packed layers, {numbers / total:.0%} of the model's parameters. Backends "
        f"that pack experts: {', '.join(able)}; target_experts=False leaves experts without."
    )


def _names(left: Iterable[WithoutAdapter]) -> list[str]:
    return list(dict.fromkeys(name for layer in left for name in layer.names))


def ends(left: Iterable[WithoutAdapter]) -> list[str]:
    """``experts.gate_up_proj``: the last name of the module, then the parameter's."""
    ends = (
        ".".join([*plain_path(layer.path).split(".")[-1:], name])
        for layer in left
        for name in layer.names
    )
    return list(dict.fromkeys(ends))
