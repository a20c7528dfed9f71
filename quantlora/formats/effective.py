"""The weight that an embedding or a convolution acts by, where that is not the one it stores.

LoRA beside such a layer calls the layer itself, whatever its forward does. Folded into the weight
the update would go through that forward too, and one that standardizes, clips or scales would
change it. So what is merged is a plain layer with the weight that the other one acts by.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlora.formats.layouts import CONVOLUTIONS, EMBEDDINGS, embed_scaled, with_weights
from quantlora.formats.twin import parametrized

_STOCK = tuple(kind.forward for kind in (*EMBEDDINGS, *CONVOLUTIONS))
#: Of the largest value; the weight is disturbed by as much as it is.
_TOLERANCE = 0.02
#: So many impulses at once.
_CHUNK = 64


@torch.no_grad()
def shows_its_weight(layer: nn.Module) -> bool:
    """Whether another weight D more gives D's product more; linear layers were tried at `wrap`."""
    weight: Any = getattr(layer, "weight", None)
    if not isinstance(layer, (*EMBEDDINGS, *CONVOLUTIONS)) or weight is None or weight.is_meta:
        return True
    if getattr(layer, "max_norm", None) is not None:
        return False
    if _is_stock(layer):
        return True
    more = torch.randn_like(weight) * weight.float().std().clamp(min=1e-3).to(weight.dtype)
    x, bias = _sample(layer), getattr(layer, "bias", None)
    try:
        y = layer(x)
        same, moved = (with_weights(layer, tried, bias)(x) for tried in (weight, weight + more))
        wanted = y + _product(layer, x, more)
    except Exception:  # whatever it does, it is not the plain product
        return False
    return _close(same, y) and _close(moved, wanted)


@torch.no_grad()
def plain_layer(layer: nn.Module) -> nn.Module | None:
    """A layer of torch's own class with the weight that ``layer`` acts by; None: there is none."""
    try:
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            plain = _embedding(layer) if isinstance(layer, EMBEDDINGS) else _convolution(layer)
            x = _sample(layer)
            return plain if _close(plain(x), _copy(layer)(x)) else None
    except Exception:
        return None


def _embedding(layer: Any) -> nn.Module:
    count, size = layer.weight.shape
    ids = torch.arange(layer.num_embeddings, device=layer.weight.device)
    new = nn.Embedding(count, size, padding_idx=layer.padding_idx, device="meta")
    new.weight = nn.Parameter(_copy(layer)(ids).clone(), requires_grad=False)
    return new


def _convolution(layer: Any) -> nn.Module:
    kind: Any = next(kind for kind in CONVOLUTIONS if isinstance(layer, kind))
    names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    settings = {name: getattr(layer, name) for name in names}
    factory_kwargs = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    weight, bias = _impulses(layer)
    new = kind(
        layer.in_channels, layer.out_channels, **settings, **factory_kwargs, bias=bool(bias.any())
    )
    new.weight = nn.Parameter(weight, requires_grad=False)
    if new.bias is not None:
        new.bias = nn.Parameter(bias, requires_grad=False)
    return new.train(layer.training)  # type: ignore[no-any-return]


def _impulses(layer: Any) -> tuple[Tensor, Tensor]:
    """The answers to one impulse for each element of the kernel, without padding; and to none."""
    steps, sizes, starts = _window(layer)
    width, like = layer.in_channels // layer.groups, layer.weight
    columns = []
    taps = list(itertools.product(range(width), *(range(k) for k in layer.kernel_size)))
    rest = like.new_zeros(1, layer.in_channels, *sizes)
    first_only, answers = (0, slice(None), *steps), (slice(None), slice(None), *steps)
    zero = layer(rest)[first_only]
    for first in range(0, len(taps), _CHUNK):
        part = taps[first : first + _CHUNK]
        x = rest.repeat(len(part), *[1] * (rest.dim() - 1))
        for i, (channel, *positions) in enumerate(part):
            at = (s + d * k for s, d, k in zip(starts, layer.dilation, positions, strict=True))
            tap = (i, slice(channel, None, width), *at)
            x[tap] = 1
        columns.append(layer(x)[answers] - zero)
    return torch.cat(columns).t().reshape(like.shape).contiguous(), zero.clone()


def _window(layer: Any) -> tuple[list[int], list[int], list[int]]:
    """Output position, input size and input position, by dimension, of a window in the middle."""
    reach = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    given = {"same": [r // 2 for r in reach], "valid": [0] * len(reach)}
    padding = (
        given.get(layer.padding, layer.padding) if isinstance(layer.padding, str) else layer.padding
    )
    steps = [-(-p // s) for p, s in zip(padding, layer.stride, strict=True)]
    starts = [o * s - p for o, s, p in zip(steps, layer.stride, padding, strict=True)]
    sizes = [a + r + 1 + p for a, r, p in zip(starts, reach, padding, strict=True)]
    return steps, sizes, starts


def _copy(layer: Any) -> nn.Module:
    """One that may change its weight: ``max_norm`` does."""
    return copy.deepcopy(layer) if isinstance(layer, EMBEDDINGS) else layer


def _is_stock(layer: nn.Module) -> bool:
    hooks = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    return type(layer).forward in _STOCK and not (hooks or parametrized(layer))


def _sample(layer: Any) -> Tensor:
    """Tokens, or two windows in each direction."""
    if isinstance(layer, EMBEDDINGS):
        return torch.arange(min(layer.num_embeddings, 32), device=layer.weight.device)
    _, sizes, _ = _window(layer)
    wide = [size + s for size, s in zip(sizes, layer.stride, strict=True)]
    return torch.randn(2, layer.in_channels, *wide).to(layer.weight)


def _product(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    if not isinstance(layer, EMBEDDINGS):
        product: Tensor = layer._conv_forward(x, weight, None)
        return product
    return embed_scaled(layer, F.embedding(x, weight))


def _close(y: Any, wanted: Tensor) -> bool:
    if not isinstance(y, Tensor) or y.shape != wanted.shape:
        return False
    return bool((y - wanted).abs().max() <= _TOLERANCE * wanted.abs().max())
