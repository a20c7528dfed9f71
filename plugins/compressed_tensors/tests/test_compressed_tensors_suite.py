"""The conformance suite on layers that the library has compressed."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from quantlora.testing import QuantizerSuite

pytest.importorskip("compressed_tensors", "0.20")


class CompressedTensors(QuantizerSuite):
    quantizer = "compressed_tensors"
    options: ClassVar[dict[str, Any]] = {}
    shapes = ((128, 128), (96, 64), (40, 64), (1, 32))


class TestFourBits(CompressedTensors):
    options: ClassVar[dict[str, Any]] = {"scheme": "W4A16", "group_size": 32}


@pytest.mark.slow
class TestAsymmetric(CompressedTensors):
    options: ClassVar[dict[str, Any]] = {"scheme": "W4A16_ASYM", "group_size": 32}


@pytest.mark.slow
class TestEightBitRows(CompressedTensors):
    options: ClassVar[dict[str, Any]] = {"scheme": "W8A8"}


@pytest.mark.slow
class TestFp8(CompressedTensors):
    options: ClassVar[dict[str, Any]] = {"scheme": "FP8_DYNAMIC"}


@pytest.mark.slow
class TestNvfp4(CompressedTensors):
    options: ClassVar[dict[str, Any]] = {"scheme": "NVFP4A16"}


@pytest.mark.slow
class TestMxfp4(CompressedTensors):
    options: ClassVar[dict[str, Any]] = {"scheme": "MXFP4A16"}
    closeness = 0.2
