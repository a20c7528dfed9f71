"""How cost grows: with the rank, the layers, the adapters, the tokens and the experts.

Each is doubled a few times. The exponent is the slope of log time over log size: 1 is twice the
time for twice the size, 0 no more time.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import quantlora
from tests.benchmarks import arms
from tests.benchmarks.arms import Size
from tests.benchmarks.result import Result
from tests.benchmarks.suites import training

#: Gives what is to be timed at a size.
At = Callable[[int], Callable[[], object]]


def run(size: Size, device: str) -> Result:
    """Nothing is compared, so nothing has a peer: the curves are quantlora's own."""
    full = size.hidden > 1000
    result = Result("How cost grows", "ms", "the first size")
    small = replace(size, hidden=512 if full else 128, inner=1024 if full else 256)
    for name, at in _curves(small, device).items():
        points = (64, 128, 256, 512) if "adapters" in name else (16, 32, 64, 128)
        _add(result, name, at, points if full else points[:2], size.rounds)
    return result


def _curves(size: Size, device: str) -> dict[str, At]:
    return {
        "a step, by rank": lambda r: _step(replace(size, r=r, tokens=64), device),
        "a step, by tokens": lambda n: _step(replace(size, tokens=8 * n), device),
        "adding an adapter, by layers": lambda n: _put_on(n, 1),
        "adding all adapters, by adapters": lambda n: _put_on(4, n),
        "choosing one, by adapters": lambda n: _among(n, _choose),
        "saving one, by adapters": lambda n: _among(n, _save),
        "a mixed batch of 64, by adapters": lambda n: _among(n, _mixed),
        "a step, by experts": lambda n: _experts(n),
    }


def _add(result: Result, name: str, at: At, points: tuple[int, ...], rounds: int) -> None:
    seconds = [_least(at, point, min(3, rounds)) for point in points]
    exponent = slope(points, seconds)
    for point, spent in zip(points, seconds, strict=True):
        row = {"case": name, "arm": "quantlora", "size": point, "value": 1e3 * spent}
        result.rows.append(row | {"ratio": spent / seconds[0], "exponent": exponent})


def _least(at: At, point: int, rounds: int) -> float:
    found = []
    for _ in range(rounds):
        work = at(point)
        begin = time.process_time()
        work()
        found.append(time.process_time() - begin)
    return max(min(found), 1e-9)


def slope(points: tuple[int, ...], seconds: list[float]) -> float:
    """Least squares over the logarithms."""
    x, y = [math.log(p) for p in points], [math.log(s) for s in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def _step(size: Size, device: str) -> Callable[[], object]:
    model = arms.ours(arms.packed(size, training.FORM, device, layers=1), size).train()
    x = training.embedded(size, device)
    training.step(model, x)
    return partial(training.step, model, x)


def _stack(layers: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(64, 64) for _ in range(layers)))


def _put_on(layers: int, adapters: int) -> Callable[[], nn.Module]:
    model = _stack(layers)
    targets = [str(i) for i in range(layers)]

    def work() -> nn.Module:
        for i in range(adapters):
            quantlora.wrap(model, r=8, target_modules=targets, adapter_name=f"a{i}")
        return model

    return work


def _among(adapters: int, act: Callable[[nn.Module, int], Callable[[], object]]) -> Any:
    work = act(_put_on(4, adapters)().eval(), adapters)
    work()
    return work


def _choose(model: nn.Module, adapters: int) -> Callable[[], object]:
    return lambda: [quantlora.set_adapter(model, name) for name in ("a1", "a0")]


def _save(model: nn.Module, adapters: int) -> Callable[[], object]:
    folder = Path(tempfile.mkdtemp())
    return lambda: quantlora.save_adapter(model, folder, "a0")


def _mixed(model: nn.Module, adapters: int) -> Callable[[], object]:
    x, names = torch.randn(64, 64), [f"a{i * adapters // 64}" for i in range(64)]

    def work() -> None:
        with torch.no_grad(), quantlora.mixed_batch(model, names):
            model(x)

    return work


def _experts(count: int) -> Callable[[], object]:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, num_local_experts=count,
    )  # fmt: skip
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    model: Any = MixtralForCausalLM(config)
    quantlora.wrap(model, r=4, target_modules=[], target_parameters=parameters)
    ids = torch.randint(64, (1, 256))

    def work() -> None:
        model(input_ids=ids, labels=ids).loss.backward()

    work()
    return work
