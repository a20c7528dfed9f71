"""The conformance suite on every type of blocks that can be packed."""

from typing import ClassVar

import pytest

from quantlora.testing import QuantizerSuite

pytest.importorskip("gguf")


class Packed(QuantizerSuite):
    quantizer = "gguf"
    shapes = ((64, 256), (128, 128), (40, 64), (33, 96), (1, 32))


class TestQ8_0(Packed):  # noqa: N801
    options: ClassVar = {"block_type": "Q8_0"}


class TestQ4_0(Packed):  # noqa: N801
    options: ClassVar = {"block_type": "Q4_0"}


@pytest.mark.slow
class TestQ4_1(Packed):  # noqa: N801
    options: ClassVar = {"block_type": "Q4_1"}


class SuperBlocks(Packed):
    shapes = ((64, 256), (33, 512), (1, 256))


class TestQ4_K(SuperBlocks):  # noqa: N801
    options: ClassVar = {"block_type": "Q4_K"}


@pytest.mark.slow
class TestQ6_K(SuperBlocks):  # noqa: N801
    options: ClassVar = {"block_type": "Q6_K"}


@pytest.mark.slow
class TestQ5_K(SuperBlocks):  # noqa: N801
    options: ClassVar = {"block_type": "Q5_K"}


@pytest.mark.slow
class TestQ3_K(SuperBlocks):  # noqa: N801
    options: ClassVar = {"block_type": "Q3_K"}
    closeness = 0.25


@pytest.mark.slow
class TestQ2_K(SuperBlocks):  # noqa: N801
    options: ClassVar = {"block_type": "Q2_K"}
    closeness = 0.4


@pytest.mark.slow
class TestIQ4_NL(Packed):  # noqa: N801
    options: ClassVar = {"block_type": "IQ4_NL"}


@pytest.mark.slow
class TestIQ4_XS(SuperBlocks):  # noqa: N801
    options: ClassVar = {"block_type": "IQ4_XS"}
