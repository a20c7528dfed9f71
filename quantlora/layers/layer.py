"""`LoraLayer`: A and B by adapter name; the mathematics is in `linear.py`."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from quantlora.errors import AdapterError
from quantlora.formats.flattened import plain_tensors
from quantlora.layers.adapted_layer import AdaptedLayer
from quantlora.layers.hooks import move_hooks

if TYPE_CHECKING:
    from quantlora.config.lora_config import LoraConfig
    from quantlora.formats.quantizer import Quantizer


class Scalings(UserDict[str, float]):
    """Scales by adapter name, each also as a tensor ``(1,)``.

    `torch.compile` takes a number for a constant of the graph, a tensor for an input. A new value
    is written into the same tensor, which the compiled graph reads. One of no dimensions would be
    taken for a number.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        super().__init__()

    def __setitem__(self, name: str, value: float) -> None:
        super().__setitem__(name, value)
        with torch.inference_mode(False):
            new = torch.tensor([value], dtype=torch.float64, device="cpu")
            self._tensors.setdefault(name, new).copy_(new)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        del self._tensors[name]

    def operand(self, name: str) -> float | Tensor:
        """The scale to compute with: a number, or while a graph is traced, a tensor in its place.

        Of no dimensions, so that products keep their own dtype and device as with a number.
        """
        return self._tensors[name][0] if torch.compiler.is_compiling() else self.data[name]


class LoraLayer(AdaptedLayer):
    """Holds, by adapter name, ``lora_A``, ``lora_B`` and their settings."""

    #: A and B by their names in an adapter file.
    factor_names: ClassVar[tuple[str, str]] = ("lora_A.weight", "lora_B.weight")
    #: Whether somebody has read ``weight`` and computed with it.
    weight_was_used = False

    def __init__(self, base_layer: nn.Module, quantizer: Quantizer, path: str) -> None:
        super().__init__(base_layer, quantizer, path)
        self.lora_A = nn.ModuleDict()
        self.lora_B = nn.ModuleDict()
        self.lora_dropout = nn.ModuleDict()
        self.adapter_variants: dict[str, str] = {}
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.scaling = Scalings()
        self.train(base_layer.training)

    @classmethod
    def adopt(cls, layer: LoraLayer) -> LoraLayer:
        """``layer``, or a layer of this class around the same base with the same adapters.

        Every variant also holds plain LoRA adapters, so one of them may join a plain layer.
        """
        if isinstance(layer, cls):
            return layer
        if not issubclass(cls, type(layer)):
            raise AdapterError(
                f"{layer.path}: an adapter of variant {cls.variant!r} cannot join adapters of "
                f"variant {layer.variant!r} on one layer; put it on a model of its own."
            )
        new = cls(layer.base_layer, layer.quantizer, layer.path)
        mine = new.by_name()
        for key, theirs in layer.by_name().items():
            mine[key].update(theirs)
        new.base_change, new.packed_from = layer.base_change, layer.packed_from
        new.packed_here = layer.packed_here
        new.active, new.enabled = layer.active, layer.enabled_for_all
        move_hooks(layer, new)
        return new

    @classmethod
    def accepts(cls, base_layer: nn.Module, quantizer: Quantizer) -> bool:
        """Whether this class can wrap such a layer."""
        raise NotImplementedError

    # -- adapters

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self.r)

    def has_adapter(self, name: str) -> bool:
        return name in self.r

    def by_name(self) -> dict[str, Any]:
        """Everything that is kept by adapter name; variants add their own."""
        return {
            "lora_A": self.lora_A,
            "lora_B": self.lora_B,
            "lora_dropout": self.lora_dropout,
            "adapter_variants": self.adapter_variants,
            "r": self.r,
            "lora_alpha": self.lora_alpha,
            "scaling": self.scaling,
        }

    def has_variant(self, name: str) -> bool:
        """Whether adapter ``name`` is of this class's variant; else it is plain LoRA."""
        return self.adapter_variants.get(name) == self.variant

    def finish_adapter(self, name: str, config: LoraConfig) -> None:
        """Called once A and B have their first values, for what depends on them."""

    def add_adapter(
        self, name: str, config: LoraConfig, r: int, lora_alpha: float, dtype: torch.dtype
    ) -> None:
        """Add zero-valued A and B of rank ``r``; an `Initializer` fills them."""
        if name in self.r:
            raise AdapterError(
                f"{self.path}: adapter {name!r} exists already; choose another name."
            )
        self.adapter_variants[name] = config.variant
        self.add_factors(name, config, r, dtype)
        self.lora_dropout[name] = _dropout(config.lora_dropout).train(self.training)
        self.r[name], self.lora_alpha[name] = r, lora_alpha
        self.scaling[name] = config.scaling(r, lora_alpha)

    def add_factors(self, name: str, config: LoraConfig, r: int, dtype: torch.dtype) -> None:
        """Put zero-valued A and B in their tables."""
        self.lora_A[name], self.lora_B[name] = self.new_factors(config, r, dtype)

    def new_factors(
        self, config: LoraConfig, r: int, dtype: torch.dtype
    ) -> tuple[nn.Module, nn.Module]:
        """A and B for one adapter, on the base's device."""
        raise NotImplementedError

    @property
    def rank_multiple(self) -> int:
        """Ranks here are multiples of so many."""
        return 1

    def drops(self, name: str) -> bool:
        """Whether the adapter's dropout is at work now."""
        return self.training and isinstance(self.lora_dropout[name], nn.Dropout)

    def alpha_factor(self, name: str) -> float:
        """An adapter file's ``lora_alpha`` is this layer's times so much (PEFT's convention)."""
        return 1.0

    def file_fields(self, name: str) -> dict[str, Any]:
        """Fields of the adapter's config file that this layer settles."""
        return {}

    def file_notes(self, name: str) -> dict[str, Any]:
        """Facts about the adapter for ``quantlora.json``."""
        return {}

    def adapter_tensors(self, name: str) -> dict[str, nn.Parameter]:
        """The adapter's parameters by their name in an adapter file, e.g. ``lora_A.weight``."""
        self._known(name)
        factors = {"lora_A": self.lora_A[name], "lora_B": self.lora_B[name]}
        return {
            f"{side}.{key}": parameter
            for side, module in factors.items()
            for key, parameter in _named(module)
        }

    def extra_repr(self) -> str:
        adapters = ", ".join(f"{n}: r={self.r[n]}, s={self.scaling[n]:g}" for n in self.adapters)
        return f"{self.quantizer.name}, {adapters}"

    def _is_unmerged(self, state_dict: Mapping[str, Any], prefix: str) -> bool:
        """It has the base from before, or none at all with other values of a merged adapter."""
        if not self.bases_before_merge:
            return False
        if not any(key.startswith(f"{prefix}base_layer.") for key in state_dict):
            return self._changes_merged(state_dict, prefix)
        before = self.bases_before_merge[-1][0].state_dict()
        given = {name: state_dict.get(f"{prefix}base_layer.{name}") for name in before}
        return _same(before, given) and not _same(self.base_layer.state_dict(), given)

    def _changes_merged(self, state_dict: Mapping[str, Any], prefix: str) -> bool:
        merged = [f"{table}.{name}." for table in self.by_name() for name in self.merged_adapters]
        here = {
            name: tensor
            for name, tensor in self.named_parameters()
            if f"{name}.".startswith(tuple(merged)) and prefix + name in state_dict
        }
        return not _same(here, {name: state_dict[prefix + name] for name in here})


def _named(module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """The parameters of a factor, in most cases its weight: asked for often, so without a walk."""
    if module._modules:
        return module.named_parameters()
    return [
        (key, parameter) for key, parameter in module._parameters.items() if parameter is not None
    ]


def _dropout(p: float) -> nn.Module:
    """No module at all for p = 0, so that the input is not copied."""
    return nn.Dropout(p) if p else nn.Identity()


def _same(tensors: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Whether both have the same names and, in tensors of the same dtypes, the same values."""
    return tensors.keys() == others.keys() and all(
        isinstance(tensor, Tensor)
        and isinstance(other := others[name], Tensor)
        and tensor.dtype == other.dtype
        and _equal(tensor, other)
        for name, tensor in tensors.items()
    )


def _equal(tensor: Tensor, other: Tensor) -> bool:
    parts, theirs = list(plain_tensors(tensor)), list(plain_tensors(other))
    return len(parts) == len(theirs) and all(
        part.dtype == their.dtype and torch.equal(part, their.to(part.device))
        for part, their in zip(parts, theirs, strict=True)
    )
