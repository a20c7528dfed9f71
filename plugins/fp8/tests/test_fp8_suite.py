"""The conformance suite on Transformers' layers."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from quantlora.testing import QuantizerSuite
from tests.tools.versions import transformers_5


class Fp8(QuantizerSuite):
    quantizer = "fp8"
    options: ClassVar[dict[str, Any]] = {"weight_block_size": (32, 32)}


@transformers_5
class TestBlocks(Fp8):
    """The last blocks of 33 x 50 are cut off."""


@transformers_5
@pytest.mark.slow
class TestOneScale(Fp8):
    options: ClassVar[dict[str, Any]] = {"weight_block_size": None}
