"""The fused experts of one layer beside PEFT's and the bare base's: memory, a step, one token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from tests.benchmarks import experts_arms
from tests.benchmarks.arms import Size
from tests.benchmarks.experts_arms import Inputs
from tests.benchmarks.experts_peak import peak_of
from tests.benchmarks.experts_reference import error
from tests.benchmarks.result import Result
from tests.benchmarks.timing import interleaved

ARMS = ("base", "peft", "quantlora")


def kept(size: Size, device: str) -> Result:
    """Bytes that forward keeps for backward, each storage once, weights and A and B left out."""
    result = Result("Experts: kept for backward", "MiB", "peft")
    for form, models, errors in _cases(size, device):
        given = experts_arms.inputs(size, device, size.tokens)
        found = {name: saved_bytes(model, given) for name, model in models.items()}
        _add(result, form, found, errors)
    return result


def peak(size: Size, device: str) -> Result:
    """Weights included, in a process for each arm; on a CPU, whatever ``device`` is."""
    result = Result("Experts: peak resident, layer and step", "MiB", "peft")
    forms = experts_arms.FORMS if size.hidden > 1000 else experts_arms.FORMS[:1]
    peft = peak_of("peft", "float", size)
    for form in forms:
        found = {name: peak_of(name, form, size) for name in ("base", "quantlora")}
        _add(result, form, {"base": found["base"], "peft": peft, **found}, {})
    return result


def step(size: Size, device: str) -> Result:
    """Forward and backward."""
    result = Result("Experts: a training step", "ms", "peft")
    for form, models, errors in _cases(size, device):
        given = experts_arms.inputs(size, device, size.tokens)
        work = {name: partial(train, model, given) for name, model in models.items()}
        result.add(form, interleaved(work, "peft", size.rounds), errors)
    return result


def decode(size: Size, device: str) -> Result:
    """One token, which goes to two experts."""
    result = Result("Experts: one token", "ms", "base")
    for form, models, errors in _cases(size, device):
        given = experts_arms.inputs(size, device, 1)
        calls = {name: _call(model.eval(), given) for name, model in models.items()}
        result.add(form, interleaved(calls, "base", 10 * size.rounds), errors)
    return result


def _cases(size: Size, device: str) -> Any:
    """For each form its arms and how far they are from float64; PEFT's is float in each."""
    peft = experts_arms.arm("peft", size, "float", device).train()
    few = experts_arms.inputs(size, device, 32)
    off = {"peft": error("peft", peft, few)}
    for form in experts_arms.FORMS:
        models = {n: experts_arms.arm(n, size, form, device).train() for n in ("base", "quantlora")}
        errors = off | {name: error(f"{form}, {name}", m, few) for name, m in models.items()}
        yield form, {"base": models["base"], "peft": peft, "quantlora": models["quantlora"]}, errors


def _add(result: Result, form: str, found: dict[str, int], errors: dict[str, float]) -> None:
    for name, value in found.items():
        row = {"case": form, "arm": name, "value": value / 2**20}
        row["ratio"] = value / found[result.reference]
        result.rows.append(row | ({"error": errors[name]} if name in errors else {}))


def train(model: nn.Module, given: Inputs) -> None:
    """Forward and backward; the hidden states need a gradient, as behind a first layer."""
    x = given[0].detach().requires_grad_()
    model(x, *given[1:]).float().square().mean().backward()
    for parameter in model.parameters():
        parameter.grad = None


def _call(model: nn.Module, given: Inputs) -> Callable[[], Tensor]:
    @torch.no_grad()
    def call() -> Tensor:
        out: Tensor = model(*given)
        return out

    return call


def saved_bytes(model: nn.Module, given: Inputs) -> int:
    """What one forward keeps, the hidden states among it."""
    frozen = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        out = model(given[0].detach().requires_grad_(), *given[1:])
    total = sum(found.values())  # ``out`` keeps all of them alive: no address is used twice
    del out
    return total
