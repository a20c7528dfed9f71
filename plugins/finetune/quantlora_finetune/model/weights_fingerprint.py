"""Which weights a model has, told by a sample of each tensor."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

#: Values of each tensor that are looked at, evenly spaced: another training changes all of them.
_SAMPLE = 4096


def weights_fingerprint(model: nn.Module) -> str:
    """A hash over names, shapes and a sample of the float weights, each rounded to bfloat16.

    So a resumed run may load the model in another dtype, or on another device.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        values = tensor.detach().reshape(-1)[:: max(1, tensor.numel() // _SAMPLE)]
        digest.update(f"{name}:{tuple(tensor.shape)}:".encode())
        digest.update(values.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
