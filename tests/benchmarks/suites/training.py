"""What the two suites of a training step share: models that train, and their gradients checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks import arms
from tests.benchmarks.arms import Size
from tests.benchmarks.reference import WrongNumbersError, check, reference_of

#: Gradients of bfloat16 products, against float64.
LIMIT = 0.08
FORM = "bitsandbytes_4bit"
CASES: dict[str, dict[str, Any]] = {
    "lora": {},
    "dropout 0.1": {"lora_dropout": 0.1},
    "dora": {"use_dora": True},
}


def models(case: str, size: Size, device: str) -> dict[str, nn.Module]:
    """One layer of the model: the library's own, PEFT's and quantlora's, in training mode."""
    base = arms.packed(size, FORM, device, layers=1)
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    mine = arms.ours(base, size, **CASES[case])
    theirs = arms.peft(base, mine, FORM, size, **CASES[case])
    return {name: m.train() for name, m in (("base", base), ("peft", theirs), ("quantlora", mine))}


def step(model: nn.Module, embedded: Tensor) -> Tensor:
    """Forward and backward; the input needs a gradient, as behind a first layer with adapters."""
    x = embedded.detach().requires_grad_()
    loss: Tensor = model(inputs_embeds=x, use_cache=False).logits.float().square().mean()
    loss.backward()
    for parameter in model.parameters():
        parameter.grad = None
    return loss


def embedded(size: Size, device: str, length: int | None = None) -> Tensor:
    torch.manual_seed(3)
    shape = (1, length or size.tokens, size.hidden)
    return torch.randn(shape, device=device, dtype=torch.bfloat16)


def errors(found: dict[str, nn.Module], size: Size, device: str) -> dict[str, float]:
    """The gradients of A and B in eval mode (no dropout) against float64; the largest error."""
    x = embedded(size, device, 32)
    reference = reference_of(found["quantlora"])
    wanted = [one for one in _gradients(reference, x.double()) if one is not None]
    worst = {}
    for name in ("peft", "quantlora"):
        given = _gradients(found[name].eval(), x)
        if len(given) != len(wanted):
            raise WrongNumbersError(f"{name}: {len(given)} gradients instead of {len(wanted)}")
        worst[name] = max(check(name, a, b, LIMIT) for a, b in zip(given, wanted, strict=True))
        found[name].train()
    return worst


def _gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Of all A and B in the order of the layers."""
    x = x.detach().requires_grad_()  # else bitsandbytes repacks PEFT's layers, which then are wrong
    model(inputs_embeds=x, use_cache=False).logits.to(x.dtype).square().mean().backward()
    given = [
        parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and "magnitude" not in name
    ]
    for parameter in model.parameters():
        parameter.grad = None
    return given
