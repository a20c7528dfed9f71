"""`LoraExperts`: LoRA on the fused experts of a mixture, one expert at a time.

    out[token] += weight · down(gate(up(x)))     up, down:  x · W[e]ᵀ + s · B[e](A[e] x)

A and B are those of `LoraParameters`, so files are PEFT's; the forward is not. There the module
runs with W + ΔW of all experts in float; here only experts with tokens are touched, W may be packed
and is unpacked one expert at a time, and ΔW is never made. Whichever ``experts_implementation`` the
model has, this one computes while an adapter is active.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from quantlora.errors import AdapterError
from quantlora.experts.branch import Branch
from quantlora.experts.layout import ExpertsLayout
from quantlora.experts.packed import PackedExperts
from quantlora.experts.products import routed_experts
from quantlora.experts.stacks_format import parameter_shapes, whole_stack
from quantlora.formats.autocast import working_dtype
from quantlora.layers.parameters import LoraParameters

if TYPE_CHECKING:
    from quantlora.formats.quantizer import Quantizer

#: The sub-batches of a mixed batch, as adapters of each; and the sub-batch of each token.
_Groups = tuple[list[tuple[str, ...]], Tensor | None]


class LoraExperts(LoraParameters):
    """LoRA on one or both of the stacked matrices of fused experts."""

    variant: ClassVar[str] = "experts"

    def __init__(self, base_layer: nn.Module, quantizer: Quantizer, path: str) -> None:
        super().__init__(base_layer, quantizer, path)
        self.shapes = parameter_shapes(base_layer)

    @property
    def layout(self) -> ExpertsLayout:
        return cast(ExpertsLayout, experts_layout(self.base_layer))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        hidden: Tensor
        hidden, *routing = (*args, *kwargs.values())
        groups, of_token = self._groups(hidden)
        if not any(groups):
            return cast(Tensor, self.base_layer(*args, **kwargs))
        several = len(groups) > 1
        branches = [
            branch
            for group, names in enumerate(groups)
            for name in names
            for branch in self._branches(name, group if several else None, hidden)
        ]
        settings: dict[str, Any] = {"path": self.path, "branches": branches}
        settings["groups"] = of_token if several else None
        return cast(
            Tensor, routed_experts(self.base_layer, self.layout, hidden, *routing, **settings)
        )

    def _read(self, key: str) -> Tensor:
        base = self.base_layer
        if isinstance(base, PackedExperts) and key in base.stacks:
            return whole_stack(base, key)
        return super()._read(key)

    def file_fields(self, name: str) -> dict[str, Any]:
        """PEFT refuses a file that has dropout on parameters, also one that is only used."""
        dropout = isinstance(self.lora_dropout[name], nn.Dropout)
        return {"lora_dropout": 0.0} if dropout else {}

    def _branches(self, name: str, group: int | None, hidden: Tensor) -> list[Branch]:
        """The products of adapter ``name``, as the module multiplies: from inputs to outputs."""
        p = float(cast(nn.Dropout, self.lora_dropout[name]).p) if self.drops(name) else 0.0
        found = []
        for key, pair in self._factors(name).items():
            A, B = self._stacked(key, *pair)
            dtype = working_dtype(hidden, A.dtype)
            found.append(Branch(key, A, B, self._scale(name, key), p, group, dtype))
        return found

    def _stacked(self, key: str, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """A ``(experts, r, in)`` and B ``(experts, out, r)`` of a parameter.

        Where the module does not say that it is transposed (Llama 4), PEFT takes its inputs for
        outputs, and so do the files.
        """
        experts = self.shapes[key][0]
        first = A.reshape(experts, -1, A.shape[1])
        second = B.reshape(len(B), -1, experts).permute(2, 0, 1)
        if self.layout.transposed == self.transposed:
            return first, second
        return second.transpose(1, 2), first.transpose(1, 2)

    def stacked_factors(self, name: str) -> dict[str, tuple[Tensor, Tensor]]:
        """A ``(experts, r, in)`` and B ``(experts, out, r)`` by the stack they are beside."""
        return {key: self._stacked(key, *pair) for key, pair in self._factors(name).items()}

    def scale_of(self, name: str, key: str) -> float:
        """The factor of the update of stack ``key``."""
        return self._scale(name, key)

    @torch.no_grad()
    def set_expert(self, name: str, key: str, expert: int, A: Tensor, B: Tensor) -> None:
        """Give one expert its A ``(r, in)`` and B ``(out, r)``."""
        first, second = self.stacked_factors(name)[key]
        first[expert].copy_(A)
        second[expert].copy_(B)

    def _groups(self, hidden: Tensor) -> _Groups:
        """Adapters by sub-batch. Tokens are in order, as many for each sample."""
        if self.sample_adapters is None or not self.enabled:
            return [self.active_unmerged], None
        names = self.sample_adapters
        kinds = list(dict.fromkeys(names))
        adapters: list[tuple[str, ...]] = [
            (kind,) if kind in self.adapters else () for kind in kinds
        ]
        tokens = hidden.numel() // hidden.shape[-1]
        rows = tokens if self.layout.routed else tokens // self.shapes[self.layout.up][0]
        if rows % len(names):
            raise AdapterError(
                f"{self.path}: adapter_names has {len(names)} entries, and the experts got {rows} "
                f"tokens, which are not as many for each: give one name per sample, in a batch "
                f"without packing."
            )
        groups = torch.tensor([kinds.index(name) for name in names], device=hidden.device)
        later = self.sample_dim(hidden.reshape(-1, 1, 1))
        repeat = groups.repeat if later else groups.repeat_interleave
        of_token: Tensor = repeat(rows // len(groups))
        return adapters, of_token.repeat(tokens // rows)


def parameters_wrapper(layer: nn.Module, names: Sequence[str]) -> type[LoraParameters]:
    """The class for adapters on parameters ``names`` of ``layer``, plain or wrapped."""
    if isinstance(layer, LoraParameters):
        return type(layer)
    layout = experts_layout(layer)
    return LoraParameters if layout is None or {*names} - {*layout.names} else LoraExperts


def experts_layout(module: nn.Module) -> ExpertsLayout | None:
    """The layout of fused experts, float or packed; None where they have no known form."""
    return module.layout if isinstance(module, PackedExperts) else ExpertsLayout.of(module)
