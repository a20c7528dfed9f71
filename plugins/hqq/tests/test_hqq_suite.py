"""The conformance suite on the library's layers, for both axes."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from quantlora.testing import QuantizerSuite

pytest.importorskip("hqq")


class Hqq(QuantizerSuite):
    quantizer = "hqq"
    shapes = ((128, 128), (96, 64), (40, 64))
    options: ClassVar[dict[str, Any]] = {"group_size": 32}


class TestRows(Hqq):
    pass


@pytest.mark.slow
class TestAcrossRows(Hqq):
    shapes = ((128, 128), (96, 64), (64, 64))
    options: ClassVar[dict[str, Any]] = {"axis": 0}


@pytest.mark.slow
class TestThreeBits(Hqq):
    options: ClassVar[dict[str, Any]] = {"bits": 3, "group_size": 16}
    closeness = 0.25


@pytest.mark.slow
class TestEightBits(Hqq):
    options: ClassVar[dict[str, Any]] = {"bits": 8}
