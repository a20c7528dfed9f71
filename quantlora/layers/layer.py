"""`LoraLayer`: a frozen layer and its adapters: bookkeeping; the mathematics is in `linear.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from quantlora.errors import AdapterError
from quantlora.formats.layouts import layout_of, with_weights
from quantlora.layers.base_change import BaseChange
from quantlora.layers.effective_weight import EffectiveWeight
from quantlora.layers.hooks import move_hooks
from quantlora.layers.per_call import PerCall
from quantlora.layers.scaling import Scalings
from quantlora.layers.sub_batch import sub_batches
from quantlora.suggestions import unknown

if TYPE_CHECKING:
    from quantlora.config.lora_config import LoraConfig
    from quantlora.formats.quantizer import Quantizer


class LoraLayer(PerCall, EffectiveWeight, nn.Module):
    """Holds ``base_layer`` and, by adapter name, ``lora_A``, ``lora_B`` and their settings.

    Which adapters count is in ``active``; which are folded into the base is in ``merged``.
    """

    #: A and B by their names in an adapter file.
    factor_names: ClassVar[tuple[str, str]] = ("lora_A.weight", "lora_B.weight")

    def __init__(self, base_layer: nn.Module, quantizer: Quantizer, path: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.quantizer = quantizer
        self.path = path
        self.lora_A = nn.ModuleDict()
        self.lora_B = nn.ModuleDict()
        self.lora_dropout = nn.ModuleDict()
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.scaling = Scalings()
        self.active: tuple[str, ...] = ()
        self.merged_adapters: tuple[str, ...] = ()
        # The layer of another layout that was packed; in a tuple, so it is no submodule.
        self.packed_from: tuple[nn.Module, ...] = ()
        self.packed_here = False  # by `wrap`; else the model came packed
        self.base_change: BaseChange | None = None  # what an initializer took out of the base
        # The base from before a merge. In a list, so it is neither a submodule nor in state_dict.
        self.bases_before_merge: list[tuple[nn.Module, Quantizer]] = []
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
        for mine, theirs in zip(new.tables(), layer.tables(), strict=False):
            mine.update(theirs)
        new.base_change, new.packed_from = layer.base_change, layer.packed_from
        new.packed_here = layer.packed_here
        new.active, new.enabled = layer.active, layer.enabled_for_all
        move_hooks(layer, new)
        return new

    @classmethod
    def accepts(cls, base_layer: nn.Module, quantizer: Quantizer) -> bool:
        """Whether this class can wrap such a layer."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LoraLayer:
        """The base from before a merge moves and changes its dtype with the rest."""
        for base, _ in self.bases_before_merge if recurse else ():
            base._apply(fn)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def stored_as_before(self, linear: nn.Linear) -> nn.Module:
        """``linear`` in the layout that the base had before it was packed (`Conv1D`: transposed).

        Its state dict fits the model's class then: a square one would be read transposed.
        """
        for like in self.packed_from:
            layout = layout_of(like)
            assert layout is not None
            stored = layout.stored(linear.weight.detach(), like).contiguous()
            return with_weights(like, stored, linear.bias).train(linear.training)
        return linear

    # -- adapters

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self.r)

    def tables(self) -> tuple[Any, ...]:
        """Everything that is kept by adapter name; variants append their own."""
        modules = (self.lora_A, self.lora_B, self.lora_dropout)
        return (*modules, self.r, self.lora_alpha, self.scaling)

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

    def remove_adapter(self, name: str) -> None:
        self._known(name)
        for table in self.tables():
            if name in table:
                del table[name]
        self.active = tuple(one for one in self.active if one != name)

    def rename_adapter(self, old: str, new: str) -> None:
        self._known(old)
        for table in self.tables():
            if old in table:
                table[new] = table[old]
                del table[old]
        self.active = tuple(new if one == old else one for one in self.active)
        self.merged_adapters = tuple(new if one == old else one for one in self.merged_adapters)

    def drops(self, name: str) -> bool:
        """Whether the adapter's dropout is at work now."""
        return self.training and isinstance(self.lora_dropout[name], nn.Dropout)

    @property
    def active_unmerged(self) -> tuple[str, ...]:
        """Adapters that add to the output: the active ones that are not folded in already."""
        if not self.enabled:
            return ()
        return tuple(name for name in self.standing.active if name not in self.merged_adapters)

    def adapters_by_sample(self, x: Tensor, dim: int = 0) -> list[tuple[str, Tensor | None]]:
        """Which adapters add to which samples of ``x`` (None: all of them)."""
        if self.sample_adapters is None or not self.enabled:
            return [(name, None) for name in self.active_unmerged]
        return list(sub_batches(self.sample_adapters, self.adapters, x, self.path, dim))

    def activate(self, names: Iterable[str]) -> None:
        """Make those of ``names`` that this layer has the active ones."""
        self.active = tuple(name for name in names if name in self.r)

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

    def _known(self, name: str) -> None:
        if name not in self.r:
            raise AdapterError(f"{self.path}: {unknown('adapter', name, self.adapters)}")

    def extra_repr(self) -> str:
        adapters = ", ".join(f"{n}: r={self.r[n]}, s={self.scaling[n]:g}" for n in self.adapters)
        return f"{self.quantizer.name}, {adapters}"


def _named(module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """The parameters of a factor, in most cases its weight: asked for often, so without a walk."""
    if module._modules:
        return module.named_parameters()
    return [(key, one) for key, one in module._parameters.items() if one is not None]


def _dropout(p: float) -> nn.Module:
    """No module at all for p = 0, so that the input is not copied."""
    return nn.Dropout(p) if p else nn.Identity()
