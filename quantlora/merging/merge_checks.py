"""What a merge must not do: fold in what is no number, or what the layer would not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from quantlora.errors import MergeError
from quantlora.formats.effective import plain_layer, shows_its_weight
from quantlora.formats.finite import is_finite, not_finite
from quantlora.formats.quantizer import Quantizer
from quantlora.layers.layer import LoraLayer


def check_update(
    path: str, layer: LoraLayer, names: Sequence[str], base: Mapping[str, Tensor], merged: nn.Linear
) -> None:
    """Raise `MergeError` where the merged weight or bias is NaN or infinite, naming whose it is."""
    if not not_finite(dict(merged.named_parameters())):
        return
    for name in names:
        if bad := not_finite(layer.adapter_tensors(name)):
            raise MergeError(
                f"{path}: adapter {name!r} holds NaN or infinite values ({bad[0]}), and merging it "
                f"would spoil the layer: its training has diverged, take an earlier checkpoint."
            )
    whose = "the base's weight holds" if not_finite(base) else "base and update together have"
    raise MergeError(
        f"{path}: {whose} NaN or infinite values, which cannot be merged: repair the base, or keep "
        f"the adapter unmerged."
    )


def check_stored(path: str, target: Quantizer, stored: Tensor, wanted: Tensor) -> None:
    """Raise `MergeError` where the format cannot hold the merged weight."""
    if not is_finite(stored):
        raise MergeError(
            f"{path}: the merged weight (up to {float(wanted.abs().max()):.3g}) becomes infinite "
            f"or NaN in format {target.name!r} ({stored.dtype}): keep the adapter unmerged, or "
            f"load the base in a wider dtype."
        )


def mergeable_base(
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
