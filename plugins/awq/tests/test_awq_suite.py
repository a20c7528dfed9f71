"""The conformance suite on GPTQModel's layers."""

from __future__ import annotations

from typing import ClassVar

import pytest

from quantlora.testing import QuantizerSuite

pytest.importorskip("gptqmodel", "7.0")


class Awq(QuantizerSuite):
    quantizer = "awq"
    shapes = ((128, 128), (96, 64), (40, 64))


class TestFourBits(Awq):
    options: ClassVar = {"group_size": 32}


@pytest.mark.slow
class TestOneGroup(Awq):
    options: ClassVar = {"group_size": -1}
    closeness = 0.2


@pytest.mark.slow
class TestThreeBits(Awq):
    options: ClassVar = {"bits": 3, "group_size": 16}
    closeness = 0.25


@pytest.mark.slow
class TestEightBits(Awq):
    options: ClassVar = {"bits": 8}
