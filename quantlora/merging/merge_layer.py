"""What merging makes of one layer, by mode. Nothing is changed before `MergedBase.commit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from quantlora.discovery.registration import registry
from quantlora.errors import MergeError
from quantlora.formats.around import own_forward
from quantlora.formats.autocast import without_autocast
from quantlora.formats.effective import plain_layer, shows_its_weight
from quantlora.formats.finite import is_finite, not_finite
from quantlora.formats.layouts import linear_from
from quantlora.formats.offloaded import onloaded
from quantlora.formats.parameters import FloatParameters, PackedParameters
from quantlora.formats.quantizer import FLOAT, Quantizer
from quantlora.layers.hooks import add_state_hooks
from quantlora.layers.layer import LoraLayer
from quantlora.merging.merge_report import LayerMerge


@dataclass(frozen=True)
class _Job:
    """One layer with the base it had before any merge, and the merged weight in float."""

    path: str
    layer: LoraLayer
    names: tuple[str, ...]
    base: nn.Module
    quantizer: Quantizer
    weight: Tensor
    bias: Tensor | None
    floating: torch.dtype

    def linear(self) -> nn.Linear:
        return linear_from(self.weight, self.bias).train(self.base.training)


@dataclass(frozen=True)
class MergedBase:
    """A layer's future base, and what it lost."""

    layer: LoraLayer
    names: tuple[str, ...]
    base: nn.Module
    quantizer: Quantizer
    report: LayerMerge

    def commit(self) -> None:
        """Put the merged base in place; the one from before the first merge is kept."""
        layer = self.layer
        if layer.plain_base[1].is_float:  # a packed format makes its own again
            add_state_hooks(layer.plain_base[0], self.base)
        if not layer.bases_before_merge:
            layer.bases_before_merge.append((layer.base_layer, layer.quantizer))
        layer.base_layer, layer.quantizer = self.base, self.quantizer
        layer.merged_adapters = self.names


@without_autocast
def merge_layer(
    path: str, layer: LoraLayer, adapters: tuple[str, ...], mode: str, floating: torch.dtype | None
) -> MergedBase | None:
    """The future of ``layer`` with ``adapters`` folded in; None where it stays as it is.

    Args:
        floating: the dtype of a layer that becomes float; None: that of the dequantized weight.

    Raises:
        MergeError: the format or the layer cannot hold the update, or it is no number.
    """
    wanted = (name for name in (*layer.merged_adapters, *adapters) if name in layer.adapters)
    names = tuple(dict.fromkeys(wanted))
    base, quantizer = layer.plain_base
    if not names or (mode == "keep" and not quantizer.is_float):
        return None
    _check_surroundings(path, base, quantizer)
    with onloaded(base):
        base, quantizer = _mergeable_base(path, layer, names)
        before = quantizer.dequantize(base)
        parameters = layer.merged_parameters(names, before, quantizer.bias(base))
        job = _Job(path, layer, names, base, quantizer, *parameters, floating or before.dtype)
        _check_update(path, layer, names, {"weight": before}, job.linear())
        packed, target = _unchanged(job, before, mode) or _BY_MODE[mode](job)
        read_back = target.dequantize(packed)
        _check_read_back(path, target, read_back, job.weight)
    report = LayerMerge.measure(path, target, before, job.weight, read_back)
    return MergedBase(layer, names, packed, target, report)


def _check_update(
    path: str, layer: LoraLayer, names: Sequence[str], base: Mapping[str, Tensor], merged: nn.Linear
) -> None:
    """Raise `MergeError` where the merged weight or bias is NaN or infinite, naming whose it is."""
    if not not_finite(dict(merged.named_parameters())):
        return
    for name in names:
        if bad := not_finite(layer.adapter_tensors(name)):
            raise MergeError(not_finite_text(path, name, bad[0]))
    whose = "the base's weight holds" if not_finite(base) else "base and update together have"
    raise MergeError(
        f"{path}: {whose} NaN or infinite values, which cannot be merged: repair the base, or keep "
        f"the adapter unmerged."
    )


def not_finite_text(path: str, name: str, tensor: str) -> str:
    """What to say of an adapter's ``tensor`` at ``path`` that holds NaN or infinite values."""
    return (
        f"{path}: adapter {name!r} holds NaN or infinite values ({tensor}), and merging it "
        f"would spoil the layer: its training has diverged, take an earlier checkpoint."
    )


def _check_read_back(path: str, target: Quantizer, read_back: Tensor, wanted: Tensor) -> None:
    """Raise `MergeError` where the format cannot hold the merged weight."""
    if not is_finite(read_back):
        raise MergeError(
            f"{path}: the merged weight (up to {float(wanted.abs().max()):.3g}) becomes infinite "
            f"or NaN in format {target.name!r} ({read_back.dtype}): keep the adapter unmerged, or "
            f"load the base in a wider dtype."
        )


def _mergeable_base(
    path: str, layer: LoraLayer, names: Sequence[str]
) -> tuple[nn.Module, Quantizer]:
    """The layer's base, or a plain one that gives the same output, where its own forward does more.

    Raises:
        MergeError: no plain layer does.
    """
    base, quantizer = layer.plain_base
    if shows_its_weight(base):
        return base, quantizer
    scaled = getattr(base, "embed_scale", None) is not None
    dora = any("lora_magnitude_vector" in layer.adapter_tensors(name) for name in names)
    plain = None if scaled or dora else plain_layer(base)
    if plain is None:
        raise MergeError(
            f"{path}: {type(base).__name__} does more with its weight than the plain product, so a "
            f"merged weight would not give the output of base and adapter. Keep the adapter "
            f"unmerged, or leave this layer out."
        )
    return plain, quantizer


def _unchanged(job: _Job, before: Tensor, mode: str) -> tuple[nn.Module, Quantizer] | None:
    """The base itself under an update of zero: packing what it holds again would move it."""
    if mode not in ("requantize", "keep") or not torch.equal(job.weight, before.to(job.weight)):
        return None
    old, bias = job.quantizer.bias(job.base), job.bias
    if bias is None or (not bias.any() if old is None else torch.equal(bias, old.to(bias))):
        return job.base, job.quantizer
    return None


def _check_surroundings(path: str, base: nn.Module, quantizer: Quantizer) -> None:
    """What cannot be put around the merged layer again."""
    if quantizer.is_float and own_forward(base, quantizer) is not None:
        raise MergeError(
            f"{path}: the layer has a forward of its own, which is not the merged layer's. Keep "
            f"the adapter unmerged, or leave this layer out."
        )


def _requantize(job: _Job) -> tuple[nn.Module, Quantizer]:
    if not job.quantizer.can_quantize:
        raise MergeError(
            f"{job.path}: format {job.quantizer.name!r} can be read but not packed again here, so "
            f'a merge cannot keep it. Use mode="dequantize" for a float layer, or keep the adapter '
            f"apart."
        )
    return job.quantizer.quantize(job.linear(), like=job.base), job.quantizer


def _dequantize(job: _Job) -> tuple[nn.Module, Quantizer]:
    if job.quantizer.is_float:  # stays as it is stored: transposed, convolution, dtype
        return _requantize(job)
    if isinstance(job.quantizer, PackedParameters):
        return job.quantizer.unpacked(job.linear(), job.base), FloatParameters()
    quantizer = registry().quantizers[FLOAT]
    linear = cast(nn.Linear, quantizer.quantize(job.linear().to(job.floating)))
    return job.layer.stored_as_before(linear), quantizer


def _exact(job: _Job) -> tuple[nn.Module, Quantizer]:
    return job.layer.exact_base(job.names, job.base, job.quantizer)


_BY_MODE: dict[str, Callable[[_Job], tuple[nn.Module, Quantizer]]] = {
    "requantize": _requantize,
    "dequantize": _dequantize,
    "keep": _requantize,
    "exact": _exact,
}

#: What `merge` offers.
MODES = tuple(_BY_MODE)
