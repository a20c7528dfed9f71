"""The conformance suite on torchao's tensors."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from quantlora.testing import QuantizerSuite

pytest.importorskip("torchao", "0.15")


class Torchao(QuantizerSuite):
    quantizer = "torchao"
    shapes = ((128, 128), (96, 64), (40, 64))
    options: ClassVar[dict[str, Any]] = {}


class TestInt8(Torchao):
    pass


@pytest.mark.slow
class TestFourBits(Torchao):
    options: ClassVar[dict[str, Any]] = {"bits": 4, "group_size": 32}


@pytest.mark.slow
class TestFloat8(Torchao):
    options: ClassVar[dict[str, Any]] = {"kind": "float8"}
