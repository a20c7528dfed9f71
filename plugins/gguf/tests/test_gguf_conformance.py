"""The conformance suite on every type of blocks that can be packed."""

from typing import ClassVar

import pytest

from quantlora.testing import QuantizerSuite

pytest.importorskip("gguf")


class Packed(QuantizerSuite):
    quantizer = "gguf"
    shapes = ((128, 128), (96, 64), (40, 64), (33, 96), (1, 32))


class TestQ8_0(Packed):  # noqa: N801
    options: ClassVar = {"block_type": "Q8_0"}


class TestQ4_0(Packed):  # noqa: N801
    options: ClassVar = {"block_type": "Q4_0"}


class TestQ4_1(Packed):  # noqa: N801
    options: ClassVar = {"block_type": "Q4_1"}
