"""First values on fused experts: an initializer for layers is asked about one expert at a time.

Each expert's matrix is shown to it as a linear layer of rank r, packed in the stack's format. What
it puts at ``base_layer`` are the stack's new codes for this expert.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from quantlora.errors import ConfigError
from quantlora.experts.packed import PackedExperts
from quantlora.experts.single import SingleExpert, SingleExpertFormat
from quantlora.formats.expert_stack import ExpertStack
from quantlora.initializers.initializer import InitContext, Initializer
from quantlora.layers.experts import LoraExperts
from quantlora.layers.linear import LoraLinear

#: The float weight of an expert, by the stack's name and its number.
Reference = Callable[[str, int], Tensor]


@torch.no_grad()
def start_experts(
    initializer: Initializer, layer: LoraExperts, context: InitContext, reference: Reference
) -> None:
    """`Initializer.initialize` for each expert of each stack that ``context.adapter`` is on.

    Args:
        reference: float weights ``(out, in)`` from before packing.
    """
    base = layer.base_layer
    assert isinstance(base, PackedExperts)
    changed: dict[str, ExpertStack] = {}
    for name in cast(nn.ModuleDict, layer.lora_A[context.adapter]):
        if name not in base.stacks:
            continue  # float: nothing was lost, so it starts as plain LoRA
        stack = _started(initializer, layer, context, name, reference)
        if stack is not None:
            changed[name] = stack
    if changed:
        layer.base_layer = PackedExperts(base, base.layout, {**base.stacks, **changed})


def _started(
    initializer: Initializer,
    layer: LoraExperts,
    context: InitContext,
    name: str,
    reference: Reference,
) -> ExpertStack | None:
    """One stack; its new codes where the initializer has given some expert others."""
    base = cast(PackedExperts, layer.base_layer)
    stack, parts = base.stacks[name], []
    packer = cast(Any, layer.quantizer).packer
    for expert in range(stack.shape[0]):
        path = f"{context.path}.{name}.{expert}"
        weight = reference(name, expert)
        single = SingleExpert(packer.quantize_experts(weight[None], path, like=stack), path)
        shown = _shown(layer, SingleExpertFormat(packer), single, name, context)
        given = partial(reference, name, expert)
        initializer.initialize(shown, replace(context, path=path, reference=given))
        layer.set_expert(context.adapter, name, expert, *_factors(shown, context.adapter))
        if not isinstance(shown.base_layer, SingleExpert):
            raise ConfigError(
                f"{path}: initializer {initializer.name!r} has made it a "
                f"{type(shown.base_layer).__name__}; experts can stay packed only: leave them out "
                f"with target_experts=False."
            )
        parts.append((shown.base_layer.stack, shown.base_layer is not single))
    if not any(new for _, new in parts):
        return None
    return type(stack).joined([part for part, _ in parts])


def _shown(
    layer: LoraExperts,
    quantizer: SingleExpertFormat,
    single: SingleExpert,
    name: str,
    context: InitContext,
) -> LoraLinear:
    """A LoRA layer around one expert, with the adapter's rank and scale."""
    adapter = context.adapter
    shown = LoraLinear(single, quantizer, single.path)
    A, _ = layer.stacked_factors(adapter)[name]
    shown.add_adapter(adapter, context.config, A.shape[1], layer.lora_alpha[adapter], A.dtype)
    shown.scaling[adapter] = layer.scale_of(adapter, name)
    return shown


def _factors(shown: LoraLinear, adapter: str) -> tuple[Tensor, Tensor]:
    tensors = shown.adapter_tensors(adapter)
    return tensors["lora_A.weight"].data, tensors["lora_B.weight"].data
