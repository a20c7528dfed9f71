"""A tiny Transformers model, and adapters with values worth saving."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

import quantlora
from quantlora.testing.models import tiny_llama

MakeBase = Callable[..., LlamaForCausalLM]
MakeWrapped = Callable[..., LlamaForCausalLM]

TOKENS = torch.arange(12)[None] * 5 % 64


#: Smaller than the usual tiny model: there are many saves.
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}


def llama(**changes: Any) -> LlamaForCausalLM:
    return tiny_llama(**{**SIZES, **changes}).eval()


@torch.no_grad()
def with_values(model: nn.Module, seed: int = 1) -> nn.Module:
    """Values for all adapter tensors, as if they had been trained."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.normal_(std=0.3)
    return model


@pytest.fixture
def make_base() -> MakeBase:
    """Makes the same tiny model each time."""
    return llama


@pytest.fixture
def make_wrapped() -> MakeWrapped:
    """Makes the tiny model with an adapter from keywords of `wrap`, its values random."""

    def make(**fields: Any) -> LlamaForCausalLM:
        return with_values(quantlora.wrap(llama(), **{"r": 4, **fields}))

    return make


@pytest.fixture
def logits() -> Callable[[nn.Module], Tensor]:
    @torch.no_grad()
    def compute(model: nn.Module) -> Tensor:
        return model.eval()(TOKENS).logits

    return compute


@pytest.fixture
def randomize() -> Callable[[nn.Module], nn.Module]:
    """Gives all adapter tensors of a model random values."""
    return with_values


@pytest.fixture
def peft() -> Any:
    """The peer, where it is installed."""
    return pytest.importorskip("peft")
