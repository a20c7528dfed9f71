"""Each format keeps the weight as it is, and fails in a way of its own."""

import ctypes
import os
import subprocess
import sys
import time
from functools import cache

from torch import Tensor, nn

from quantlora import Quantizer


class Kept(nn.Module):
    def __init__(self, linear: nn.Linear, form: str) -> None:
        super().__init__()
        self.form = form
        self.out_features, self.in_features = linear.weight.shape
        self.register_buffer("kept", linear.weight.detach().clone())
        self.bias = None


class Format(Quantizer):
    module = "crashing_formats"

    def __init__(self, name: str, dequantize=lambda kept: kept, quantize=lambda: None) -> None:
        self.name, self._dequantize, self._quantize = name, dequantize, quantize

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (Kept,)

    def matches(self, layer: nn.Module) -> bool:
        return isinstance(layer, Kept) and layer.form == self.name

    def dequantize(self, layer: nn.Module) -> Tensor:
        return self._dequantize(layer.kept)

    def quantize(self, linear, like=None, **options) -> nn.Module:
        self._quantize()
        return Kept(linear, self.name)


def drift(kept: Tensor) -> Tensor:
    return kept.mul_(1.5)


def refuse(kept: Tensor) -> Tensor:
    raise RuntimeError("CUDA error: no kernel image is available for execution on the device")


@cache
def leave_one_behind() -> None:
    """A process that holds our standard output, as a compile server does."""
    code = "import time; time.sleep(60)"
    subprocess.Popen([sys.executable, "-c", code])


def leave_one_and_hang() -> None:
    leave_one_behind()
    time.sleep(600)


def all_formats() -> list[Quantizer]:
    return [
        Format("segfault", dequantize=lambda kept: ctypes.string_at(0)),
        Format("leaves", quantize=lambda: os._exit(7)),
        Format("hangs", quantize=lambda: time.sleep(600)),
        Format("leaves_one", quantize=leave_one_behind),
        Format("leaves_one_and_hangs", quantize=leave_one_and_hang),
        Format("drifts", dequantize=drift),
        Format("raises", dequantize=refuse),
    ]
