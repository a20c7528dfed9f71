"""What a LoRA layer computes with, as one weight and one bias: for models that read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quantlora.errors import LayerError
from quantlora.formats.layouts import layout_of
from quantlora.formats.offloaded import onloaded
from quantlora.layers.base_facts import BaseFacts
from quantlora.layers.read_weight import is_plain, read_weight
from quantlora.layers.weight_update import WeightUpdate

if TYPE_CHECKING:
    from quantlora.formats.quantizer import Quantizer


class EffectiveWeight(BaseFacts, WeightUpdate):
    """``W + Σ ΔW`` over the adapters that count, in the shape and dtype that the layer stores."""

    _dtype_seen: tuple[tuple[torch.dtype, ...], torch.dtype] | None = None

    @property
    def weight(self) -> Any:
        """What the layer computes with, adapters included; the frozen one is ``base_layer``'s."""
        return read_weight(self)

    @property
    def bias(self) -> Tensor | None:
        """The base's bias and those of the adapters that count (``lora_bias``)."""
        own = self.base_bias
        names = [name for name in self.read_names() or () if self.has_bias(name)]
        return self.merged_bias(names, self.plain_weight(), own) if names else own

    @property
    def adapters(self) -> tuple[str, ...]:
        raise NotImplementedError

    @property
    def active_unmerged(self) -> tuple[str, ...]:
        raise NotImplementedError

    @property
    def enabled(self) -> bool:
        raise NotImplementedError

    @property
    def sample_adapters(self) -> tuple[str, ...] | None:
        raise NotImplementedError

    def has_bias(self, name: str) -> bool:
        """Whether adapter ``name`` has a bias of its own (``lora_bias``)."""
        return False

    def read_names(self) -> tuple[str, ...] | None:
        """The adapters that count for every sample; None where samples differ."""
        if self.sample_adapters is None or not self.enabled:
            return self.active_unmerged
        return None if set(self.sample_adapters) & set(self.adapters) else ()

    def own_weight(self, key: str) -> Tensor | None:
        """The base's weight, if it is plain numbers in the layer's shape."""
        own = getattr(self.base_layer, key, None)
        if not isinstance(own, Tensor) or tuple(own.shape) != self._stored_shape():
            return None
        return own if is_plain(own) else None

    def meta_weight(self, key: str) -> tuple[Tensor, torch.device]:
        """A meta tensor that looks like the weight, and the weight's device."""
        own = self.own_weight(key)
        dtype = self._packed_dtype() if own is None else own.dtype
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
        stored = weight if layout is None else layout.stored(weight, self.base_layer)
        return stored.to(self.meta_weight(key)[0].dtype)

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
        own = (one for name, one in base.named_parameters() if name != "bias")
        if not any(one.requires_grad for one in own):
            return None
        weight = quantizer.trainable(base)
        if weight is None:
            raise LayerError(
                f"{self.path}: the base's weight needs a gradient (requires_grad), and it is "
                f"packed in format {quantizer.name!r}, which has none: freeze it with "
                f"requires_grad_(False)."
            )
        return weight
