"""Telling one base model from another, however its layers are quantized."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from quantlora.adapters.adapter_modules import own_modules
from quantlora.adapters.modules_to_save import ModulesToSaveWrapper
from quantlora.layers.layer import LoraLayer
from quantlora.names import plain_path


def fingerprint(model: nn.Module) -> str | None:
    """A hash over the one-dimensional weights: the norms, which every format leaves as they are.

    They are compared in bfloat16, so that the dtype a model is loaded in makes no difference.
    None where there are none, or where they are trained, sharded or not in memory.
    """
    digest, count = hashlib.sha256(), 0
    for path, module in own_modules(model):
        if isinstance(module, LoraLayer):  # its weight is made when it is read, of two dimensions
            continue
        plain = module.original_module if isinstance(module, ModulesToSaveWrapper) else module
        weight = getattr(plain, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 1 or not weight.is_floating_point():
            continue
        if weight.requires_grad or weight.is_meta or type(weight) not in (Tensor, nn.Parameter):
            return None
        values = weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
        digest.update(f"{plain_path(path)}:{tuple(weight.shape)}:".encode())
        digest.update(values.numpy().tobytes())
        count += 1
    return f"sha256:{digest.hexdigest()}" if count else None
