"""`ExpertsLayout`: which parameters of a module are the matrices of its experts, and how they act.

    h = gate(x · W₁[e]ᵀ + b₁[e])        gate_up_proj, or up_proj where there is no gate
    y = norm(h · W₂[e]ᵀ + b₂[e])        down_proj; most have neither biases nor the norm

Transformers 5 has one decorator for all such classes, ``use_experts_implementation``, and what it
puts on the module says the rest (``integrations/moe.py``). Llama 4 has a class of its own, which is
called with the rows of each expert one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from quantlora.formats.around import called_otherwise

#: A variable of the decorator's forward, by which it is known.
_DECORATOR = "experts_interface"
_LLAMA4 = "Llama4TextExperts"


@dataclass(frozen=True)
class ExpertsLayout:
    """How a module of fused experts computes.

    Args:
        up, down: names of the two stacked matrices.
        transposed: they are stored ``(experts, in, out)``, not ``(experts, out, in)``.
        routed: called with ``(hidden, top-k index, top-k weights)``; else with the rows of each
            expert one after the other, as many for each.
    """

    up: str
    down: str
    transposed: bool
    routed: bool = True

    @property
    def names(self) -> tuple[str, str]:
        return self.up, self.down

    def own_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """``(experts, out, in)`` as the module's parameter has it."""
        experts, out, into = shape
        return (experts, into, out) if self.transposed else shape

    @classmethod
    def of(cls, module: nn.Module) -> ExpertsLayout | None:
        """None where ``module`` holds no fused experts of a known form."""
        untyped: Any = module
        if is_llama4(type(module)):
            found = cls("gate_up_proj", "down_proj", True, routed=False)
        elif _is_decorated(type(module)) and hasattr(module, "has_gate"):
            up = "gate_up_proj" if untyped.has_gate else "up_proj"
            found = cls(up, "down_proj", bool(untyped.is_transposed))
        else:
            return None
        stacks = [module._parameters.get(name) for name in found.names]
        fits = all(stack is not None and stack.dim() == 3 for stack in stacks)
        return found if fits and not called_otherwise(module) else None


def gated(module: Any, rows: Tensor) -> Tensor:
    """What is between the two products, of rows ``(n, 2 · intermediate)``."""
    if hasattr(module, "has_gate"):
        gate = module._apply_gate if module.has_gate else module.act_fn
        return cast(Tensor, gate(rows))
    first, up = rows.chunk(2, dim=-1)
    return cast(Tensor, up * module.act_fn(first))


def norm_of(module: Any) -> nn.Module | None:
    """The norm behind the second product, if any."""
    return module.post_expert_norm if getattr(module, "has_post_expert_norm", False) else None


def bias_of(module: Any, name: str) -> Tensor | None:
    """The biases ``(experts, out)`` behind the product with ``name``, if any."""
    return getattr(module, f"{name}_bias") if getattr(module, "has_bias", False) else None


def is_llama4(kind: type) -> bool:
    return kind.__name__ == _LLAMA4 and kind.__module__.startswith("transformers.models.llama4")


def _is_decorated(kind: type) -> bool:
    code = getattr(kind.forward, "__code__", None)  # type: ignore[attr-defined]
    return code is not None and _DECORATOR in code.co_freevars
