"""`LoraParameters`: LoRA on parameters that are no layer's weight (``target_parameters``).

Fused experts keep the matrices of all experts in one parameter ``(experts, out, in)``, or
``(experts, in, out)`` where the module says ``is_transposed``. An adapter has factors for each
expert, side by side in one A and one B, as in PEFT:

    ΔW[e] = s · B[e] · A[e]     A (experts · r, in), expert by expert
                                B (out, r · experts), the expert's number running fastest

The module's own forward runs with ``W + Σ ΔW`` in place of W. That is a float copy of W, so it is
made again in backward instead of kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from quantlora.config.patterns import by_pattern
from quantlora.errors import AdapterError, ConfigError
from quantlora.formats.attention import IN_PROJ
from quantlora.formats.autocast import autocast_off
from quantlora.formats.offloaded import is_offloaded
from quantlora.formats.parameters import call_with, weights
from quantlora.formats.seen import Seen
from quantlora.formats.transforms import transformed
from quantlora.layers.layer import LoraLayer
from quantlora.layers.read_weight import read_weight
from quantlora.names import plain_path

if TYPE_CHECKING:
    from quantlora.config.lora_config import LoraConfig
    from quantlora.formats.quantizer import Quantizer


#: By parameter: its own value unless it is packed, and A, B and scale of each adapter.
_Parts = dict[str, tuple[Tensor | None, list[tuple[Tensor, Tensor, float]]]]


class LoraParameters(LoraLayer):
    """LoRA on parameters of one module; a pair of factors for each, in ModuleDicts by its name."""

    variant: ClassVar[str] = "parameters"

    def __init__(self, base_layer: nn.Module, quantizer: Quantizer, path: str) -> None:
        super().__init__(base_layer, quantizer, path)
        self.shapes = {name: weight.shape for name, weight in weights(base_layer).items()}
        self.transposed = bool(getattr(base_layer, "is_transposed", False))
        #: By adapter and parameter: its scale, as a multiple of the adapter's.
        self.relative_scales: dict[str, dict[str, float]] = {}

    @classmethod
    def accepts(cls, base_layer: nn.Module, quantizer: Quantizer) -> bool:
        return False  # no kind of layer: it is planned for parameters alone

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        parts = self._parts(self._unmerged())
        if not parts:
            return self.base_layer(*args, **kwargs)
        if not torch.is_grad_enabled() or transformed():
            return call_with(self.base_layer, self._updated(parts), *args, **kwargs)
        return checkpoint(self._with(parts), *args, use_reentrant=False, **kwargs)

    def _with(self, parts: _Parts) -> Callable[..., Any]:
        """The module's forward with ``parts``, also where backward finds others in their place."""
        ids = {
            id(tensor) for value, deltas in parts.values() for tensor in (value, *sum(deltas, ()))
        }
        compared = not (torch.compiler.is_compiling() or is_offloaded(self.base_layer))
        seen = Seen(self, self.path) if compared else None

        def run(*args: Any, **kwargs: Any) -> Any:
            if seen is not None:
                found = seen.exchanged(self)
                seen.check_own(
                    {name: tensor for name, tensor in found.items() if id(tensor) not in ids}
                )
            return call_with(self.base_layer, self._updated(parts), *args, **kwargs)

        return run

    def _parts(self, names: Sequence[str]) -> _Parts:
        """What the updated parameters are made of; packed ones (None) are unpacked when needed."""
        parts: _Parts = {}
        for name in names:
            for key, (A, B) in self._factors(name).items():
                value = self.base_layer._parameters.get(key)
                parts.setdefault(key, (value, []))[1].append((A, B, self._scale(name, key)))
        return parts

    def _unmerged(self) -> tuple[str, ...]:
        """The active adapters that are not merged; routed tokens no longer know their sample."""
        mixed = set(self.sample_adapters or ()) & set(self.adapters)
        if mixed and self.enabled:
            raise AdapterError(
                f"{self.path}: {', '.join(sorted(mixed))} has adapted parameters here "
                f"(target_parameters), which all samples share: it cannot be in a mixed batch."
            )
        return self.active_unmerged if self.sample_adapters is None else ()

    def _updated(self, parts: _Parts) -> dict[str, Tensor]:
        """``W + Σ ΔW`` by name."""
        updated = {}
        for key, (value, deltas) in parts.items():
            weight = self._read(key) if value is None else value
            for A, B, scaling in deltas:
                weight = weight + self._delta(key, A, B, scaling).to(weight.dtype)
            updated[key] = weight
        return updated

    def deltas(self, name: str) -> dict[str, Tensor]:
        """The update of each parameter, in the parameter's shape."""
        factors = self._factors(name)
        return {
            key: self._delta(key, *pair, self._scale(name, key)) for key, pair in factors.items()
        }

    def _scale(self, name: str, key: str) -> float:
        return self.scaling[name] * self.relative_scales[name][key]

    def _delta(self, key: str, A: Tensor, B: Tensor, scaling: float) -> Tensor:
        with autocast_off(A):
            return scaling * self._product(A, B, self.shapes[key])

    def _product(self, A: Tensor, B: Tensor, shape: torch.Size) -> Tensor:
        experts, _, _ = self._sizes(shape)
        order = "eio" if self.transposed and len(shape) == 3 else "eoi"
        parts = B.reshape(len(B), -1, experts), A.reshape(experts, -1, A.shape[1])
        return torch.einsum(f"ore,eri->{order}", *parts).reshape(shape)

    def _sizes(self, shape: torch.Size) -> tuple[int, int, int]:
        """Experts, outputs and inputs of a parameter of that shape."""
        out, into = shape[-2:]
        if len(shape) == 2:
            return 1, out, into
        return (shape[0], into, out) if self.transposed else (shape[0], out, into)

    def delta_weight(self, name: str, weight: Tensor) -> Tensor:
        """All updates as one row, in the order of the format's ``dequantize``."""
        deltas = self.deltas(name)
        some = next(iter(deltas.values()))
        rows = [deltas[k] if k in deltas else some.new_zeros(s) for k, s in self.shapes.items()]
        return torch.cat([row.reshape(-1) for row in rows])[None]

    def _factors(self, name: str) -> dict[str, tuple[Tensor, Tensor]]:
        A, B = (cast(Mapping[str, nn.Linear], side[name]) for side in (self.lora_A, self.lora_B))
        return {key: (A[key].weight, B[key].weight) for key in A}

    # -- parameters read from outside: torch's encoder passes the attention by

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("shapes", ()):
            return read_weight(self, name)
        if name == "_qkv_same_embed_dim":
            return getattr(self.base_layer, name)
        return super().__getattr__(name)

    @property
    def weight(self) -> Any:
        has_weight = "weight" in self.shapes
        return read_weight(self) if has_weight else getattr(self.base_layer, "weight", None)

    @property
    def bias(self) -> Any:
        """The module's own, whatever it is."""
        return getattr(self.base_layer, "bias", None)

    def own_weight(self, key: str) -> Tensor | None:
        return self.base_layer._parameters.get(key)

    def meta_weight(self, key: str) -> tuple[Tensor, torch.device]:
        parameter = self._read(key)
        return torch.empty_like(parameter, device="meta"), parameter.device

    def updated(self, key: str, names: Sequence[str]) -> Tensor:
        parts = self._parts([name for name in names if key in self._factors(name)])
        return self._updated(parts)[key] if parts else self._read(key)

    def _read(self, key: str) -> Tensor:
        """A parameter of the base as it stands, unpacked where it is packed."""
        parameter: Tensor = getattr(self.base_layer, key)
        return parameter

    # -- bookkeeping

    def add_factors(self, name: str, config: LoraConfig, r: int, dtype: torch.dtype) -> None:
        A, B = nn.ModuleDict(), nn.ModuleDict()
        scales: dict[str, float] = {}
        picked = picked_parameters(self.path, self.shapes, config)
        for key in picked or [IN_PROJ]:  # none: the attention is a target as a whole
            experts, out, into = self._sizes(self.shapes[key])
            r, scales[key] = self._rank_and_scale(key, config) if picked else (r, 1.0)
            device = self.quantizer.device(self.base_layer)
            factory_kwargs: dict[str, Any] = {"bias": False, "device": device, "dtype": dtype}
            A[key] = nn.Linear(into, r * experts, **factory_kwargs)
            B[key] = nn.Linear(r * experts, out, **factory_kwargs)
        for parameter in (*A.parameters(), *B.parameters()):
            nn.init.zeros_(parameter)
        self.lora_A[name], self.lora_B[name] = A, B
        self.relative_scales[name] = _relative(scales, self.path)

    def _rank_and_scale(self, key: str, config: LoraConfig) -> tuple[int, float]:
        """PEFT gives ``gate_up_proj``, which is two projections, twice the rank of the others."""
        path = f"{plain_path(self.path)}.{key}"
        r = by_pattern(path, config.rank_pattern, config.r)
        return r, config.scaling(r, by_pattern(path, config.alpha_pattern, config.lora_alpha))

    def by_name(self) -> dict[str, Any]:
        return {**super().by_name(), "relative_scales": self.relative_scales}

    def adapter_tensors(self, name: str) -> dict[str, nn.Parameter]:
        """By PEFT's names: one wrapper around another for each parameter, the last outermost."""
        self._known(name)
        tensors: dict[str, Tensor] = {}
        for depth, (A, B) in enumerate(reversed(self._factors(name).values())):
            nested = "base_layer." * depth
            tensors |= {f"{nested}lora_A.weight": A, f"{nested}lora_B.weight": B}
        return cast("dict[str, nn.Parameter]", tensors)


def picked_parameters(path: str, names: Mapping[str, Any], config: LoraConfig) -> list[str]:
    """Those of ``names`` in the module at ``path`` that ``target_parameters`` picks."""
    wanted = tuple(f".{target}" for target in config.target_parameters or ())
    return [name for name in names if f".{path}.{name}".endswith(wanted)]


def _relative(scales: Mapping[str, float], path: str) -> dict[str, float]:
    """The scales in units of the first, which is the layer's; alpha may be 0 for all of them."""
    first = next(iter(scales.values()))
    if not first and any(scales.values()):
        raise ConfigError(
            f"{path}: lora_alpha is 0 for {next(iter(scales))} and is not for other parameters of "
            f"this module: leave that one out of target_parameters, which is the same."
        )
    return {key: scale / first if first else 1.0 for key, scale in scales.items()}
