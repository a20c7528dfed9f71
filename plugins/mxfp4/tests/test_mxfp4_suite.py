"""The conformance suite on packed linear layers."""

from quantlora.testing import QuantizerSuite


class TestMxfp4(QuantizerSuite):
    quantizer = "mxfp4"
    shapes = ((128, 128), (40, 64), (33, 96), (1, 32))
