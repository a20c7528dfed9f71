"""One backend, tried for real: quantize, forward, backward, eval then train, merge.

Run as ``python -m quantlora.env.exercise NAME`` by `deep`; one JSON line when a step begins and one
when it ends, on what was standard output before any library could write to it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import quantlora
from quantlora.checks import Check
from quantlora.discovery.entry_points import kept_apart, text_of
from quantlora.discovery.registration import registry
from quantlora.env.verdicts import backend_checks

#: Largest relative difference from the same arithmetic on a dense copy; bfloat16 products have it.
TOLERANCE = 3e-2

_IN, _OUT = 128, 256


class Exercise:
    """The steps, in order; each uses what the one before it left."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(0)
        self.x = torch.randn(4, _IN, device=self.device)

    def steps(self) -> Iterator[tuple[str, Callable[[], None]]]:
        yield "quantize", self.quantize
        yield "forward", self.forward
        yield "backward", self.backward
        yield "eval then train", self.eval_then_train
        yield "merge", self.merge

    def quantize(self) -> None:
        base = self._base().to(self.device)
        self.model = nn.Sequential(base)
        fields = _fields(self.check)
        quantlora.wrap(self.model, r=4, target_modules=["0"], **fields)
        layer = self.model[0]
        assert isinstance(layer, quantlora.LoraLayer)
        self.layer: quantlora.LoraLayer = layer
        for tensor in layer.adapter_tensors("default").values():
            nn.init.normal_(tensor, std=0.05)

    def forward(self) -> None:
        self.y = self.model(self.x).detach()
        _finite(self.y)
        dense, bias = self._dense()
        _near(self.y, nn.functional.linear(self.x, dense, bias), "output")

    def backward(self) -> None:
        self.gradients = self._gradients()
        for name, gradient in self.gradients.items():
            _finite(gradient)
            if not gradient.abs().sum():
                raise ArithmeticError(f"the gradient of {name} is zero")

    def eval_then_train(self) -> None:
        self.model.eval()
        with torch.no_grad():
            _near(self.model(self.x), self.y, "output in eval mode")
        self.model.train()
        for name, gradient in self._gradients().items():
            _near(gradient, self.gradients[name], f"gradient of {name} after an eval forward")

    def merge(self) -> None:
        before = self.model(self.x).detach()
        mode = "requantize" if self.layer.quantizer.can_quantize else "dequantize"
        quantlora.merge(self.model, mode=mode)
        _finite(self.model(self.x))
        quantlora.unmerge(self.model)
        if not torch.equal(self.model(self.x), before):
            raise ArithmeticError("unmerge did not restore the layer")

    def _base(self) -> nn.Module:
        if self.check.layer is not None:
            return self.check.layer()
        linear = nn.Linear(_IN, _OUT).to(self.device)
        quantizer = registry().quantizers.get(self.check.backend)
        if quantizer is None:
            return linear
        quantizer.require()
        return quantizer.quantize(linear)

    @torch.no_grad()
    def _dense(self) -> tuple[Tensor, Tensor | None]:
        """The same layer as one float matrix and bias."""
        weight = self.layer.quantizer.dequantize(self.layer.base_layer).float()
        return self.layer.merged_parameters(("default",), weight, self.layer.base_bias)

    def _gradients(self) -> dict[str, Tensor]:
        x = self.x.clone().requires_grad_()
        self.model.zero_grad()
        self.model(x).square().sum().backward()
        tensors = {"x": x, **self.layer.adapter_tensors("default")}
        missing = [name for name, tensor in tensors.items() if tensor.grad is None]
        if missing:
            raise ArithmeticError(f"no gradient reached {', '.join(missing)}")
        return {name: t.grad.clone() for name, t in tensors.items() if t.grad is not None}


def _fields(check: Check) -> dict[str, Any]:
    if check.fields is not None:
        return dict(check.fields())
    if check.backend in registry().initializers:
        return {"init_lora_weights": check.backend}
    chosen = check.backend in registry().variants
    return quantlora.LoraConfig.variant_fields(check.backend) if chosen else {}


def _finite(tensor: Tensor) -> None:
    if not bool(tensor.isfinite().all()):
        raise ArithmeticError("the result has NaN or infinite values")


def _near(found: Tensor, wanted: Tensor, what: str) -> None:
    error = float((found.float() - wanted.float()).norm() / wanted.float().norm())
    if not error <= TOLERANCE:
        raise ArithmeticError(f"the {what} differs from the dense reference by {error:.2g}")


def main(backend: str) -> int:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print at import
    found = {one.check.backend: one.check for one in backend_checks(registry().plugins)}
    for name, step in Exercise(found[backend]).steps():
        print(json.dumps({"begin": name}), file=out)
        start = time.perf_counter()
        error, fix = _error_of(step)
        seconds = round(time.perf_counter() - start, 3)
        event = {"name": name, "ok": not error, "seconds": seconds, "error": error, "fix": fix}
        print(json.dumps(event), file=out)
        if error:
            return 1
    return 0


def _error_of(step: Callable[[], None]) -> tuple[str, str]:
    """The error on one line, and its remedy: what follows the first line of an error of ours."""
    raised: list[BaseException] = []
    with kept_apart(raised.append):
        step()
    if not raised:
        return "", ""
    text, fix = text_of(raised[0]), ""
    if isinstance(raised[0], quantlora.QuantloraError):
        text, _, fix = text.partition("\n")
    return f"{type(raised[0]).__name__}: {' '.join(text.split())}", fix


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
