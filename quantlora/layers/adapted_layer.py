"""`AdaptedLayer`: a frozen layer with adapters, as one weight and one bias.

For models that read the weight of a layer, for merging, combining and export. A subclass says
`delta_weight`; what the layer computes with, and what merging makes of it, follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from quantlora.errors import AdapterError, LayerError, MergeError
from quantlora.formats.inference_memory import drop_copy
from quantlora.formats.layouts import layout_of, with_weights
from quantlora.formats.offloaded import onloaded
from quantlora.layers.adapter_module import AdapterModule
from quantlora.layers.base_change import BaseChange
from quantlora.layers.read_weight import is_plain, read_weight

if TYPE_CHECKING:
    from quantlora.formats.quantizer import Quantizer


class AdaptedLayer(AdapterModule):
    """``base_layer`` in the format of ``quantizer``, and ``W + Σ ΔW`` over the active adapters.

    The weight is in the shape and dtype that the layer stores.
    """

    #: The kind of adapter, as `LoraConfig.variant` names it.
    variant: ClassVar[str]
    _dtype_seen: tuple[tuple[torch.dtype, ...], torch.dtype] | None = None

    def __init__(self, base_layer: nn.Module, quantizer: Quantizer, path: str) -> None:
        super().__init__(path)
        self.base_layer = base_layer
        self.quantizer = quantizer
        # The layer of another layout that was packed; in a tuple, so it is no submodule.
        self.packed_from: tuple[nn.Module, ...] = ()
        self.packed_here = False  # by `wrap`; else the model came packed
        self.base_change: BaseChange | None = None  # what an initializer took out of the base
        # The base from before a merge. In a list, so it is neither a submodule nor in state_dict.
        self.bases_before_merge: list[tuple[nn.Module, Quantizer]] = []

    # -- the frozen layer

    @property
    def out_features(self) -> int:
        return self.quantizer.shape(self.base_layer)[0]

    @property
    def in_features(self) -> int:
        return self.quantizer.shape(self.base_layer)[1]

    @property
    def base_bias(self) -> Tensor | None:
        """The frozen layer's bias."""
        return self.quantizer.bias(self.base_layer)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The base's weight ``(out_features, in_features)``; by default in its own dtype."""
        with onloaded(self.base_layer):
            if dtype is None:
                return self.quantizer.dequantize(self.base_layer)
            return self.quantizer.dequantize_to(self.base_layer, dtype)

    @property
    def plain_base(self) -> tuple[nn.Module, Quantizer]:
        """The base from before any merge, and its format."""
        return (
            self.bases_before_merge[-1]
            if self.bases_before_merge
            else (self.base_layer, self.quantizer)
        )

    def check_unmerged(self, before: str) -> None:
        """Raise `AdapterError` where adapters are merged into the base, to do ``before`` later."""
        if self.merged_adapters:
            raise AdapterError(
                f"{self.path}: {', '.join(self.merged_adapters)} is merged into the base; call "
                f"quantlora.unmerge(model) before {before}."
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaptedLayer:
        """The base from before a merge moves and changes its dtype with the rest."""
        for base, _ in self.bases_before_merge if recurse else ():
            base._apply(fn)  # type: ignore[no-untyped-call]
        drop_copy(self.base_layer)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def stored_as_before(self, linear: nn.Linear) -> nn.Module:
        """``linear`` in the layout that the base had before it was packed (`Conv1D`: transposed).

        Its state dict fits the model's class then: a square one would be read transposed.
        """
        for like in self.packed_from:
            layout = layout_of(like)
            assert layout is not None
            values = layout.to_storage(linear.weight.detach(), like).contiguous()
            return with_weights(like, values, linear.bias).train(linear.training)
        return linear

    def __getattr__(self, name: str) -> Any:
        """What models read of a layer besides: ``padding_idx``, ``nf``, their own attributes."""
        modules = self.__dict__.get("_modules", {})
        if name in modules:  # several of them in each forward
            return modules[name]
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = modules.get("base_layer")
            if base is None or name.startswith("_"):
                raise
        return getattr(base, name)

    # -- what it computes with

    @property
    def weight(self) -> Any:
        """What the layer computes with, adapters included; the frozen one is ``base_layer``'s."""
        return read_weight(self)

    @property
    def bias(self) -> Tensor | None:
        """The base's bias and those of the active adapters (``lora_bias``)."""
        plain = self.base_bias
        names = [name for name in self.read_names() or () if self.has_bias(name)]
        return self.merged_bias(names, self.plain_weight(), plain) if names else plain

    def has_bias(self, name: str) -> bool:
        """Whether adapter ``name`` has a bias of its own (``lora_bias``)."""
        return False

    def read_names(self) -> tuple[str, ...] | None:
        """The active adapters for every sample; None where samples differ."""
        if self.sample_adapters is None or not self.enabled:
            return self.active_unmerged
        return None if set(self.sample_adapters) & set(self.adapters) else ()

    def own_weight(self, key: str) -> Tensor | None:
        """The base's weight, if it is plain numbers in the layer's shape."""
        weight = getattr(self.base_layer, key, None)
        if not isinstance(weight, Tensor) or tuple(weight.shape) != self._stored_shape():
            return None
        return weight if is_plain(weight) else None

    def meta_weight(self, key: str) -> tuple[Tensor, torch.device]:
        """A meta tensor that looks like the weight, and the weight's device."""
        weight = self.own_weight(key)
        dtype = self._packed_dtype() if weight is None else weight.dtype
        like = torch.empty(self._stored_shape(), dtype=dtype, device="meta")
        return like, self.quantizer.device(self.base_layer)

    def updated(self, key: str, names: Sequence[str]) -> Tensor:
        """``W + Σ ΔW`` over ``names``, as the layer stores it."""
        weight = self.trained_weight(self.base_layer, self.quantizer)
        if weight is None:
            weight = self.dequantize()
        plain = self.plain_weight() if names else weight
        for name in names:
            delta = self.delta_weight(name, plain)
            weight = weight.to(torch.promote_types(weight.dtype, delta.dtype)) + delta
        layout = layout_of(self.base_layer)
        values = weight if layout is None else layout.to_storage(weight, self.base_layer)
        return values.to(self.meta_weight(key)[0].dtype)

    def plain_weight(self) -> Tensor:
        """The weight from before any merge, to which every adapter's update refers."""
        base, quantizer = self.plain_base
        with onloaded(base):
            return quantizer.dequantize(base)

    def _stored_shape(self) -> tuple[int, ...]:
        layout = layout_of(self.base_layer)
        if layout is None:
            return self.quantizer.shape(self.base_layer)
        return layout.own_shape(self.base_layer)

    def _packed_dtype(self) -> torch.dtype:
        """What a packed layer computes in: models cast their activations to it."""
        asked = self.quantizer.compute_dtype(self.base_layer)
        if asked is not None:
            return asked
        key = tuple(t.dtype for t in (*self.base_layer.parameters(), *self.base_layer.buffers()))
        if self._dtype_seen is None or self._dtype_seen[0] != key:
            self._dtype_seen = key, self.plain_weight().dtype
        return self._dtype_seen[1]

    def trained_weight(self, base: nn.Module, quantizer: Quantizer) -> Tensor | None:
        """The weight of ``base`` where it needs a gradient: made trainable after `wrap`."""
        weights = (p for name, p in base.named_parameters() if name != "bias")
        if not any(p.requires_grad for p in weights):
            return None
        weight = quantizer.trainable(base)
        if weight is None:
            raise LayerError(
                f"{self.path}: the base's weight needs a gradient (requires_grad), and it is "
                f"packed in format {quantizer.name!r}, which has none: freeze it with "
                f"requires_grad_(False)."
            )
        return weight

    # -- what an adapter does to it, as a matrix

    def merged_parameters(
        self, names: Sequence[str], weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with the adapters ``names`` folded in, in float32 or better."""
        merged = weight
        for name in names:
            delta = self.delta_weight(name, weight)
            merged = merged.to(torch.promote_types(merged.dtype, delta.dtype)) + delta
        return merged, self.merged_bias(names, weight, bias)

    def merged_bias(
        self, names: Sequence[str], weight: Tensor, bias: Tensor | None
    ) -> Tensor | None:
        """The base's ``bias`` with those of the adapters ``names`` added."""
        for name in names:
            delta = self.delta_bias(name, weight)
            if delta is not None:
                bias = delta if bias is None else bias + delta.to(bias.dtype)
        return bias

    def exact_base(
        self, names: Sequence[str], base: nn.Module, quantizer: Quantizer
    ) -> tuple[nn.Module, Quantizer]:
        """A base at the same bits with ``names`` folded in without loss, where a variant can."""
        raise MergeError(
            f"{self.path}: variant {self.variant!r} has no exact merge at the same bits; use "
            f'mode="requantize" (with its loss measured) or mode="dequantize".'
        )

    def delta_weight(self, name: str, weight: Tensor) -> Tensor:
        """The update as a matrix ``(out_features, in_features)`` over the base ``weight``."""
        raise NotImplementedError

    def delta_bias(self, name: str, weight: Tensor) -> Tensor | None:
        """The update of the bias (``lora_bias``), ``(out_features,)``."""
        return None
