"""The same adapters in PEFT and here, to be compared on the same model and batch."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn

import quantlora
from quantlora.testing.models import tiny_llama

#: Agreement asked of float32: relative to the largest value.
TOLERANCE = 1e-5
IDS = torch.arange(5 * 12).reshape(5, 12) * 7 % 80


@dataclass
class Pair:
    """PEFT's model and ours, with the same base and the same adapters."""

    theirs: peft.PeftModel
    ours: nn.Module

    def parameters(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """Adapter ``name``'s parameters, PEFT's beside ours."""
        twins = {
            key.removeprefix("base_model.model."): parameter
            for key, parameter in self.theirs.named_parameters()
            if f".{name}" in key
        }
        return [(twins[key], one) for key, one in self.ours.named_parameters() if key in twins]


def peft_model(
    adapters: dict[str, dict[str, Any]], base: nn.Module | None = None, noise: float = 0.1
) -> Any:
    """PEFT's model with random adapters by name; all parameters get random values."""
    base = tiny_llama() if base is None else base
    model: Any = base
    torch.manual_seed(1)
    for name, fields in adapters.items():
        config = peft.LoraConfig(**{"target_modules": ["q_proj", "up_proj"], **fields})
        if model is base:
            model = peft.get_peft_model(base, config, name, autocast_adapter_dtype=False)
        else:
            model.add_adapter(name, config)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data += noise * torch.randn_like(parameter)
    return model


def pair(
    folder: Path,
    adapters: dict[str, dict[str, Any]],
    base: nn.Module | None = None,
    noise: float = 0.1,
) -> Pair:
    """The pair, by way of PEFT's files; every adapter trainable, the last one active."""
    plain = copy.deepcopy(tiny_llama() if base is None else base)
    theirs = peft_model(adapters, base, noise)
    theirs.save_pretrained(str(folder))
    for name in adapters:
        place = folder if name == "default" else folder / name
        quantlora.load_adapter(plain, place, name, is_trainable=True)
    theirs.set_adapter(name)
    return Pair(theirs, plain)


def relative(actual: Tensor, wanted: Tensor) -> float:
    return float((actual - wanted).abs().max() / wanted.abs().max())


def check_logits(pair: Pair, **inputs: Any) -> None:
    given = {"input_ids": IDS, **inputs}
    assert relative(pair.ours(**given).logits, pair.theirs(**given).logits) <= TOLERANCE


def check_gradients(pair: Pair, *names: str, seed: int = 3) -> None:
    """The same loss on both; every parameter's gradient is compared."""
    for model in (pair.theirs, pair.ours):
        torch.manual_seed(seed)
        model(input_ids=IDS, labels=IDS).loss.backward()
    twins = [twin for name in names for twin in pair.parameters(name)]
    assert twins
    for theirs, ours in twins:
        assert ours.grad is not None
        assert relative(ours.grad, theirs.grad) <= TOLERANCE
