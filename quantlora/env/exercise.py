"""One backend, tried for real: a layer is quantized, then every operation is run on a new one.

Run as ``python -m quantlora.env.exercise NAME`` by `deep`; one JSON line when a step begins and one
when it ends, on what was standard output before any library could write to it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch

import quantlora
from quantlora.checks import Check
from quantlora.discovery.entry_points import kept_apart, text_of
from quantlora.discovery.registration import registry
from quantlora.env.sample import Sample
from quantlora.env.verdicts import backend_checks
from quantlora.formats.quantizer import Quantizer
from quantlora.operations.catalogue import OPERATIONS
from quantlora.operations.reference import distance
from quantlora.operations.results import hold_close, hold_equal
from quantlora.operations.trial import Trial

Step = Callable[[], None]


def steps(check: Check) -> Iterator[tuple[str, Step]]:
    """The steps by name, in order; the layers of all are made as that of the first."""
    yield "quantize", partial(_quantize, check)
    trial = Trial(Sample(check), torch.float32)
    for name, operation in OPERATIONS.items():
        yield name, partial(operation.check, trial)
    quantizer = registry().quantizers.get(check.backend)
    if quantizer is not None and quantizer.can_quantize_experts:
        yield "experts", partial(_experts, quantizer)


def _experts(quantizer: Quantizer) -> None:
    """Fused experts, of which each is unpacked as it is among all."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight = torch.randn(3, 64, 128, device=device)
    stack = quantizer.quantize_experts(weight, "experts.up_proj")
    found = stack.dequantize([0, 1, 2], torch.float32)
    for expert, wanted in enumerate(weight):
        alone = stack.dequantize([expert], torch.float32)[0]
        hold_equal(alone, found[expert], f"expert {expert} by itself")
        error = distance(alone, wanted)
        hold_close(error, Sample.closeness, f"expert {expert} differs from its weight")


def _quantize(check: Check) -> None:
    Trial(Sample(check), torch.float32).one_adapter()


def main(backend: str) -> int:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print at import
    found = {offer.check.backend: offer.check for offer in backend_checks(registry().plugins)}
    for name, step in steps(found[backend]):
        print(json.dumps({"begin": name}), file=out)
        start = time.perf_counter()
        error, fix = _error_of(step)
        seconds = round(time.perf_counter() - start, 3)
        event = {"name": name, "ok": not error, "seconds": seconds, "error": error, "fix": fix}
        print(json.dumps(event), file=out)
        if error:
            return 1
    return 0


def _error_of(step: Step) -> tuple[str, str]:
    """The error on one line, and its remedy: what follows the first line of an error of ours."""
    raised: list[BaseException] = []
    torch.manual_seed(0)
    with kept_apart(raised.append), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step()
    if not raised:
        return "", ""
    text, fix = text_of(raised[0]), ""
    if isinstance(raised[0], quantlora.QuantloraError):
        text, _, fix = text.partition("\n")
    return f"{type(raised[0]).__name__}: {' '.join(text.split())}", fix


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
