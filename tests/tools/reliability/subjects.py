"""The models that the trials use: tiny, in every format that can be packed here."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

import quantlora
from quantlora.discovery.registration import registry

#: Wide enough for the blocks of every format.
WIDTH = 128


def formats() -> list[str]:
    """The formats that layers can be packed in here, and float."""
    usable = (one for one in registry().quantizers.values() if not one.availability_error())
    return [one.name for one in usable if one.can_quantize or one.name == "float"]


def plain() -> nn.Module:
    """Two linear layers and a norm, the same values each time."""
    torch.manual_seed(0)
    layers = [
        ("first", nn.Linear(WIDTH, WIDTH)), ("norm", nn.LayerNorm(WIDTH)), ("act", nn.GELU()),
        ("second", nn.Linear(WIDTH, WIDTH, bias=False)),
    ]  # fmt: skip
    return nn.Sequential(OrderedDict(layers))


def wrapped(backend: str = "float", seed: int = 1, r: int = 4) -> nn.Module:
    """`plain` with an adapter that counts, in the format ``backend``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GPTQ without calibration
        model = quantlora.wrap(plain(), backend=backend, r=r)
    return with_values(model, seed)


@torch.no_grad()
def with_values(model: nn.Module, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.normal_(std=0.3)
    return model


def adapter_values(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Same names, and the same bits, NaN included."""
    return one.keys() == other.keys() and all(_bits(one[k], other[k]) for k in one)


def _bits(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    flat = (tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(*flat)


def tiny_llama(folder: Path) -> Path:
    """A Transformers model on disk, with its tokenizer."""
    from quantlora.testing.models import save_tiny_llama

    return save_tiny_llama(folder)
