"""What goes into the two products of each expert, for methods that look at inputs (QERA)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from quantlora.errors import ConfigError
from quantlora.experts.call import ExpertCall
from quantlora.experts.layout import ExpertsLayout, gated
from quantlora.experts.routing import by_index, by_position


def has_fused_experts(module: nn.Module) -> bool:
    """Whether ``module`` is float fused experts of a known form, as `expert_inputs` takes."""
    return ExpertsLayout.of(module) is not None


@torch.no_grad()
def expert_inputs(module: nn.Module, *inputs: Tensor) -> Iterator[tuple[str, Tensor]]:
    """``("down_proj.3", rows)`` for both matrices of each expert that has tokens.

    Args:
        module: float fused experts of a Transformers model.
        inputs: what it is called with: hidden states ``(tokens, hidden)``, and top-k index and
            weights where it takes them.

    Raises:
        ConfigError: the module holds no fused experts of a known form.
    """
    layout = ExpertsLayout.of(module)
    if layout is None:
        raise ConfigError(f"expert_inputs: {type(module).__name__} holds no fused experts.")
    rows = inputs[0].reshape(-1, inputs[0].shape[-1])
    call = ExpertCall(module, layout, "experts", (), rows.dtype)
    routed = len(inputs) > 1
    routing = by_index(inputs[1], call.experts) if routed else by_position(rows, call.experts)
    for hit in routing.hits:
        x = rows.index_select(0, routing.tokens[hit.start : hit.stop])
        yield f"{layout.up}.{hit.expert}", x
        yield f"{layout.down}.{hit.expert}", gated(module, call.product(x, hit, layout.up, ()))
