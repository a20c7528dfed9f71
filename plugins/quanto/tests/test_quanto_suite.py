"""The conformance suite on the library's layers, for each type of weights."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from quantlora.testing import QuantizerSuite

pytest.importorskip("optimum.quanto")


class Quanto(QuantizerSuite):
    quantizer = "quanto"
    shapes = ((128, 128), (64, 192), (33, 50), (1, 32))


class TestFourBits(Quanto):
    options: ClassVar[dict[str, Any]] = {"bits": 4}
    closeness = 0.2


@pytest.mark.slow
class TestTwoBits(Quanto):
    options: ClassVar[dict[str, Any]] = {"bits": 2}
    closeness = 0.7


@pytest.mark.slow
class TestEightBits(Quanto):
    options: ClassVar[dict[str, Any]] = {"bits": 8}


@pytest.mark.slow
class TestFloat8(Quanto):
    options: ClassVar[dict[str, Any]] = {"weights": "float8"}
