"""`QuantizerSuite`: all parts of the conformance suite for a weight format."""

from __future__ import annotations

from quantlora.testing.copies import CopyTests
from quantlora.testing.dequantize import DequantizeTests
from quantlora.testing.forward import ForwardTests
from quantlora.testing.gradients import GradientTests
from quantlora.testing.memory import MemoryTests
from quantlora.testing.merging import MergeTests
from quantlora.testing.operation_suite import OperationTests
from quantlora.testing.optional import OptionalTests
from quantlora.testing.quantize import QuantizeTests
from quantlora.testing.recognition import RecognitionTests
from quantlora.testing.roundtrip import RoundTripTests


class QuantizerSuite(
    RecognitionTests,
    DequantizeTests,
    QuantizeTests,
    ForwardTests,
    GradientTests,
    MemoryTests,
    CopyTests,
    MergeTests,
    OperationTests,
    RoundTripTests,
    OptionalTests,
):
    """Subclass it as ``class TestMyFormat(QuantizerSuite)`` and set ``quantizer``.

    A format that cannot quantize overrides `make_layer` too. The other settings, with their
    defaults, are in `quantlora.testing.base.SuiteBase`.
    """
