"""Which weights a model has, told by a sample of each tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

#: Values of each tensor that are looked at, evenly spaced: another training changes all of them.
_SAMPLE = 4096


def weights_fingerprint(model: nn.Module) -> str:
    """A hash over names, shapes and a sample of the weights; of packed ones also over their sum.

    Floats are rounded to bfloat16, so a resumed run may load the model in another dtype, or on
    another device. Codes are taken as they are: another training leaves most of them, and scales.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        for tensor in _plain(value):
            if tensor.numel() and not tensor.is_meta:
                digest.update(f"{name}:{tuple(tensor.shape)}:".encode())
                digest.update(_floats(tensor) if tensor.is_floating_point() else _codes(tensor))
    return digest.hexdigest()


def _plain(value: object) -> Iterator[Tensor]:
    """``value``, or the tensors that a tensor of a subclass is made of; nothing of what is none."""
    if not isinstance(value, Tensor):
        return
    if not is_traceable_wrapper_subclass(value):
        yield value.detach()
        return
    for name in value.__tensor_flatten__()[0]:
        yield from _plain(getattr(value, name))


def _sampled(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1)[:: max(1, tensor.numel() // _SAMPLE)]


def _floats(tensor: Tensor) -> bytes:
    return bytes(_sampled(tensor).to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())


def _codes(tensor: Tensor) -> bytes:
    total = int(tensor.sum(dtype=torch.int64))
    return f"{total}:".encode() + bytes(_sampled(tensor).cpu().numpy().tobytes())
