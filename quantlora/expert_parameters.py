"""`LoraParameters`: LoRA on parameters that are no layer's weight (``target_parameters``).

Fused experts keep the matrices of all experts in one parameter ``(experts, out, in)``, or
``(experts, in, out)`` where the module says ``is_transposed``. One adapter has factors for each
expert, side by side in one A and one B, as PEFT has them:

    ΔW[e] = s · B[e] · A[e]      A (r · experts, in), expert by expert;  B (out, r · experts), the
                                 expert's number running fastest

The module's own forward runs with ``W + Σ ΔW`` in place of W, so it costs a float copy of W.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from quantlora.errors import AdapterError, ConfigError
from quantlora.layer import LoraLayer
from quantlora.parameter_format import weights

if TYPE_CHECKING:
    from quantlora.config import LoraConfig
    from quantlora.quantizer import Quantizer


def targeted_parameters(path: str, module: nn.Module, config: LoraConfig) -> tuple[str, ...]:
    """Names of the parameters of the module at ``path`` that ``target_parameters`` picks."""
    wanted = config.target_parameters or []
    full = {name: f"{path}.{name}" for name in dict(module.named_parameters(recurse=False))}
    picked = [n for n, key in full.items() if any(f".{key}".endswith(f".{one}") for one in wanted)]
    for name in picked:
        if name not in weights(module):
            raise ConfigError(
                f"{full[name]}: target_parameters takes float parameters with two or three "
                f"dimensions, this one is {tuple(getattr(module, name).shape)}."
            )
    return tuple(picked)


class LoraParameters(LoraLayer):
    """LoRA on parameters of one module; one pair of factors for each parameter."""

    variant: ClassVar[str] = "lora"

    @classmethod
    def accepts(cls, base_layer: nn.Module, quantizer: Quantizer) -> bool:
        return False  # never for a layer: it is planned for parameters alone

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        names = self._active()
        if not names:
            return self.base_layer(*args, **kwargs)
        own = weights(self.base_layer)
        for name in names:
            for key, delta in self.deltas(name).items():
                own[key] = own[key] + delta.to(own[key].dtype)
        return functional_call(self.base_layer, own, args, kwargs)

    def _active(self) -> tuple[str, ...]:
        """The contributing adapters; samples cannot be told apart once tokens are routed."""
        mixed = set(self.sample_adapters or ()) & set(self.adapters)
        if mixed and self.enabled:
            raise AdapterError(
                f"{self.path}: {', '.join(sorted(mixed))} has adapted parameters here, which all "
                f"samples share: it cannot be part of a mixed batch."
            )
        return self.contributing if self.sample_adapters is None else ()

    def deltas(self, name: str) -> dict[str, Tensor]:
        """The update of each parameter, in its own shape."""
        found = {}
        for key, (A, B) in self._factors(name).items():
            weight = weights(self.base_layer)[key]
            experts = len(weight) if weight.dim() == 3 else 1
            order = "eio" if _transposed(self.base_layer, weight) else "eoi"
            parts = (B.reshape(len(B), -1, experts), A.reshape(experts, -1, A.shape[1]))
            update = torch.einsum(f"ore,eri->{order}", *parts)
            found[key] = self.scaling[name] * update.reshape(weight.shape)
        return found

    def delta_weight(self, name: str, weight: Tensor) -> Tensor:
        """All updates as one row, in the order of `ParameterFormat.dequantize`."""
        deltas = self.deltas(name)
        own = weights(self.base_layer)
        rows = [deltas.get(key, torch.zeros_like(one)).reshape(-1) for key, one in own.items()]
        return torch.cat(rows)[None]

    def _factors(self, name: str) -> dict[str, tuple[Tensor, Tensor]]:
        A, B = (cast(Mapping[str, nn.Linear], side[name]) for side in (self.lora_A, self.lora_B))
        return {key: (A[key].weight, B[key].weight) for key in A}

    # -- the books

    def add_factors(self, name: str, config: LoraConfig, r: int, dtype: torch.dtype) -> None:
        A, B = nn.ModuleDict(), nn.ModuleDict()
        for key in targeted_parameters(self.path, self.base_layer, config):
            weight = weights(self.base_layer)[key]
            experts = len(weight) if weight.dim() == 3 else 1
            out, into = weight.shape[-2:]
            if _transposed(self.base_layer, weight):
                out, into = into, out
            place: dict[str, Any] = {"bias": False, "device": weight.device, "dtype": dtype}
            A[key] = nn.Linear(into, r * experts, **place)
            B[key] = nn.Linear(r * experts, out, **place)
        for parameter in (*A.parameters(), *B.parameters()):
            nn.init.zeros_(parameter)
        self.lora_A[name], self.lora_B[name] = A, B

    def adapter_tensors(self, name: str) -> dict[str, nn.Parameter]:
        """PEFT nests a wrapper for each parameter, the last one outermost."""
        self._known(name)
        factors = self._factors(name)
        tensors: dict[str, Tensor] = {}
        for depth, key in enumerate(reversed(factors)):
            for side, factor in zip(("lora_A", "lora_B"), factors[key], strict=True):
                tensors[f"{'base_layer.' * depth}{side}.weight"] = factor
        return cast("dict[str, nn.Parameter]", tensors)


def _transposed(module: nn.Module, weight: Tensor) -> bool:
    return weight.dim() == 3 and bool(getattr(module, "is_transposed", False))
